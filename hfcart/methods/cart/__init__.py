"""CART: centre on the average, keep the top singular directions, add them back."""

from __future__ import annotations

from hfcart.methods.contract import Adaptive, Method, Parameter
from hfcart.methods.shared.papers import CHOI, YANG
from hfcart.methods.shared.parameters import scale

ADAPTIVE = Adaptive(
    name="cart++",
    title="CART++ (CART with coefficients learned on unlabelled images)",
    parts=f"{__name__}.rule:parts",
    formula=r"\theta_m^l = \bar\theta^l + \sum_{t=1}^{T} \lambda_t^l\, \mathrm{SVD}_k(\theta_t^l - \bar\theta^l),"
    r" \qquad \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t",
    matrices="the average plus the sum of the rank-k approximations of every tower's distance from that average, each "
    "times a coefficient of its own",
    start=1.0,
    clamped=False,
    rounds=1,
    replaces=("scale",),
    arxiv="2412.12153",
    citation=YANG,  # whose adaptation it is, beside the method's own
    published=(86.6, 92.6),
    note="The authors' README has 85.8 and 93.1. They stopped when the test accuracy stood still; hfcart takes a fixed "
    "number of steps.",
)

METHOD = Method(
    name="cart",
    family="singular directions",
    title="CART (Centered Arithmetic with Rank-reduced Task vectors)",
    summary="Centre the task vectors on the average, keep their top singular directions, add them back.",
    matrices="the average plus λ times the sum of the rank-k approximations of every tower's "
    "distance from that average",
    others="the average",
    formula=r"\theta_m = \bar\theta + \lambda \sum_{t=1}^{T} \mathrm{SVD}_k(\theta_t - \bar\theta),"
    r" \qquad \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t",
    matrix_rule=f"{__name__}.rule:cart",
    other_rule="hfcart.methods.average.rule:average",
    parameters=(
        Parameter(
            "rank",
            0.08,
            "Singular directions kept: a share (8%, 0.08) or a number. A share of min(m, n), in (0, 1]: "
            "1.0 is full rank, 1 is one direction.",
            kind="rank",
        ),
        scale(1.0),
    ),
    needs_base=False,
    arxiv="2412.12153",
    citation=CHOI,
    updates=f"{__name__}.rule:updates",
    fewest=3,  # two centred task vectors are opposite, and so are their approximations
    decomposes=True,
    batched=True,
    any_matrix=True,
    published=(83.0, 90.8),
    note="The authors' README has 84.7 and 92.6, with another rank and scale.",
    adaptive=ADAPTIVE,
)
