"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from hfcart.methods.contract import Adaptive, Method, Parameter
from hfcart.methods.shared.papers import YANG
from hfcart.methods.shared.parameters import DENSITY_HELP, SAME, scale

_PAPER = """@inproceedings{yadav2023ties,
  title     = {TIES-Merging: Resolving Interference When Merging Models},
  author    = {Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}"""

ADAPTIVE = Adaptive(
    name="adamerging++",
    title="AdaMerging++ (AdaMerging on TIES-trimmed task vectors)",
    parts=f"{__name__}.rule:parts",
    formula=r"\theta_m^l = \theta_0^l + \sum_{t=1}^{T} \lambda_t^l\, \hat\tau_t^l, \qquad \hat\tau_t ="
    r" \mathrm{elect}(\mathrm{trim}(\theta_t - \theta_0))",
    matrices="the base plus the sum of the largest entries of every tower's task vector, as far as they have the sign "
    "elected for their place, each tower's times a coefficient of its own",
    start=0.3,
    clamped=True,
    rounds=2,
    replaces=("scale", "combine"),
    arxiv="2310.02575",
    citation=YANG,
    published=(81.1, 91.0),
    note="The coefficients lie in [0, 1].",
)

METHOD = Method(
    name="ties",
    family="task vectors",
    title="TIES-Merging (Trim, Elect Sign and Merge)",
    summary="Keep each task vector's largest entries, elect a sign for each, merge the entries that have it.",
    matrices="the base plus λ times the mean (or sum) over the towers of the largest entries of their task "
    "vectors, as far as they have the sign elected for their place",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \lambda\, \tau, \qquad \tau^p = \frac{1}{|A^p|} \sum_{t \in A^p} \hat\tau_t^p,"
    r" \qquad A^p = \{t : \mathrm{sgn}(\hat\tau_t^p) = \mathrm{sgn}(\textstyle\sum_s \hat\tau_s^p)\}",
    matrix_rule=f"{__name__}.rule:ties",
    other_rule=f"{__name__}.rule:ties",
    parameters=(
        scale(1.0),
        Parameter("density", 0.2, DENSITY_HELP, above=0.0, most=1.0),
        Parameter(
            "trim",
            "global",
            "Rank entries over the tower, or each tensor. The paper: over the tower.",
            kind="choice",
            choices=("global", "tensor"),
        ),
        Parameter(
            "combine",
            "mean",
            "What entries that agree become. Their mean, or their sum (then with a smaller scale).",
            kind="choice",
            choices=("mean", "sum"),
        ),
    ),
    needs_base=True,
    arxiv="2306.01708",
    citation=_PAPER,
    fit=f"{__name__}.rule:gather",
    task_vectors=True,
    published=(72.4, 86.0),
    note="The authors search the scale over 0.8 to 1.8 with the mean; others take the sum and 0.3. Their 20 % "
    "counts text weights too that their image encoder holds but does not use, none of which changed: of the tower "
    "alone it is a density of 0.259 for ViT-B/32 and 0.226 for ViT-L/14.",
    adaptive=ADAPTIVE,
    copies=2,
)
