"""What some methods become with coefficients learned on unlabelled images: CART++ and AdaMerging."""

from __future__ import annotations

from hfcart.methods._contract import Adaptive, Parameter

# What `adapt` is told: fields that some methods have as parameters of their own.
ADAPTING = (
    Parameter("steps", 500, "Steps of Adam.", kind="whole", least=1.0, most=1_000_000.0),
    Parameter("lr", 1e-3, "Learning rate of Adam.", above=0.0, most=10.0),
    Parameter("seed", 0, "Of what is drawn at random.", kind="whole", least=0.0, most=2.0**53),
)

_YANG = """@inproceedings{yang2024adamerging,
  title     = {AdaMerging: Adaptive Model Merging for Multi-Task Learning},
  author    = {Yang, Enneng and Wang, Zhenyi and Shen, Li and Liu, Shiwei and Guo, Guibing and Wang, Xingwei and
               Tao, Dacheng},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}"""
_CLAMPED = "The coefficients lie in [0, 1]."

CART = Adaptive(
    name="cart++",
    title="CART++ (CART with coefficients learned on unlabelled images)",
    parts="cart:parts",
    formula=r"\theta_m^l = \bar\theta^l + \sum_{t=1}^{T} \lambda_t^l\, \mathrm{SVD}_k(\theta_t^l - \bar\theta^l),"
    r" \qquad \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t",
    matrices="the average plus the sum of the rank-k approximations of every tower's distance from that average, each "
    "times a coefficient of its own",
    start=1.0,
    clamped=False,
    rounds=1,
    replaces=("scale",),
    arxiv="2412.12153",
    citation=_YANG,  # whose adaptation it is, beside the method's own
    published=(86.6, 92.6),
    note="The authors' README has 85.8 and 93.1. They stopped when the test accuracy stood still; hfcart takes a fixed "
    "number of steps.",
)
ADAMERGING = Adaptive(
    name="adamerging",
    title="AdaMerging",
    parts="task_arithmetic:parts",
    formula=r"\theta_m^l = \theta_0^l + \sum_{t=1}^{T} \lambda_t^l\, (\theta_t^l - \theta_0^l)",
    matrices="the base plus the sum of every tower's distance from it, each times a coefficient of its own",
    start=0.3,
    clamped=True,
    rounds=2,
    replaces=("scale",),
    arxiv="2310.02575",
    citation=_YANG,
    published=(80.1, 90.8),
    note=_CLAMPED,
)
ADAMERGING_PP = Adaptive(
    name="adamerging++",
    title="AdaMerging++ (AdaMerging on TIES-trimmed task vectors)",
    parts="ties:parts",
    formula=r"\theta_m^l = \theta_0^l + \sum_{t=1}^{T} \lambda_t^l\, \hat\tau_t^l, \qquad \hat\tau_t ="
    r" \mathrm{elect}(\mathrm{trim}(\theta_t - \theta_0))",
    matrices="the base plus the sum of the largest entries of every tower's task vector, as far as they have the sign "
    "elected for their place, each tower's times a coefficient of its own",
    start=0.3,
    clamped=True,
    rounds=2,
    replaces=("scale", "combine"),
    arxiv="2310.02575",
    citation=_YANG,
    published=(81.1, 91.0),
    note=_CLAMPED,
)
