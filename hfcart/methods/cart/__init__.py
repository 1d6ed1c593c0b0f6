"""CART: centre on the average, keep the top singular directions, add them back."""

from __future__ import annotations

from hfcart.methods.contract import Adaptive, Method, Parameter
from hfcart.methods.shared.papers import CHOI, LEE, YANG
from hfcart.methods.shared.parameters import scale

_OTHERS = "the average plus every tower's distance from it, each times a coefficient of its own"

ADARANK = Adaptive(
    name="adarank",
    title="AdaRank on CART (coefficients and singular directions chosen on unlabelled images)",
    parts=f"{__name__}.rule:parts",
    other_parts=f"{__name__}.rule:whole_parts",
    formula=r"\theta_m^l = \bar\theta^l + \sum_{t=1}^{T} \lambda_t^l \sum_i b_{ti}^l\, \sigma_{ti}^l\, u_{ti}^l"
    r" {v_{ti}^l}^\top, \qquad b_{ti}^l \in \{0, 1\}, \qquad \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t",
    matrices="the average plus, of every tower's distance from that average, the singular directions that were chosen, "
    "times a coefficient of each tower",
    start=2.3,
    clamped=False,
    rounds=1,
    replaces=("scale", "rank"),
    arxiv="2503.22178",
    citation=LEE,
    published=(89.2, 93.5),
    note="The authors learn 10,000 steps on test images, by entropy, with coefficients for every tensor (here: "
    "--adapt-tensors all), and keep the step that tests best.",
    rank=0.16,
    others=_OTHERS,
)

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
    other_parts=f"{__name__}.rule:whole_parts",
    ranked=ADARANK,
    others=_OTHERS,
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
