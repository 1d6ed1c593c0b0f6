"""Task arithmetic: θ_0 + λ Σ_t (θ_t − θ_0) over every tensor."""

from __future__ import annotations

from hfcart.methods.contract import Adaptive, Method
from hfcart.methods.shared.papers import LEE, YANG
from hfcart.methods.shared.parameters import scale

_PAPER = """@inproceedings{ilharco2023editing,
  title     = {Editing Models with Task Arithmetic},
  author    = {Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and
               Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""

ADARANK = Adaptive(
    name="adarank_ta",
    title="AdaRank on task arithmetic (coefficients and singular directions chosen on unlabelled images)",
    parts=f"{__name__}.rule:ranked_parts",
    formula=r"\theta_m^l = \theta_0^l + \sum_{t=1}^{T} \lambda_t^l \sum_i b_{ti}^l\, \sigma_{ti}^l\, u_{ti}^l"
    r" {v_{ti}^l}^\top, \qquad b_{ti}^l \in \{0, 1\}",
    matrices="the base plus, of every tower's distance from it, the singular directions that were chosen, times a "
    "coefficient of each tower",
    start=0.3,
    clamped=False,
    rounds=1,
    replaces=("scale",),
    arxiv="2503.22178",
    citation=LEE,
    published=(None, None),
    note="It begins with every direction.",
    rank=1.0,
    others="the base plus every tower's distance from it, each times a coefficient of its own",
)

ADAPTIVE = Adaptive(
    name="adamerging",
    title="AdaMerging",
    parts=f"{__name__}.rule:parts",
    formula=r"\theta_m^l = \theta_0^l + \sum_{t=1}^{T} \lambda_t^l\, (\theta_t^l - \theta_0^l)",
    matrices="the base plus the sum of every tower's distance from it, each times a coefficient of its own",
    start=0.3,
    clamped=True,
    rounds=2,
    replaces=("scale",),
    arxiv="2310.02575",
    citation=YANG,
    published=(80.1, 90.8),
    note="The coefficients lie in [0, 1].",
    ranked=ADARANK,
)

METHOD = Method(
    name="task_arithmetic",
    family="task vectors",
    title="Task arithmetic",
    summary="The base model plus λ times the sum of the task vectors.",
    matrices="the base plus λ times the sum of every tower's distance from it",
    others="the same as the matrices",
    formula=r"\theta_m = \theta_0 + \lambda \sum_{t=1}^{T} (\theta_t - \theta_0)",
    matrix_rule=f"{__name__}.rule:task_arithmetic",
    other_rule=f"{__name__}.rule:task_arithmetic",
    parameters=(scale(0.3),),
    needs_base=True,
    arxiv="2212.04089",
    citation=_PAPER,
    task_vectors=True,
    published=(69.1, 84.5),
    adaptive=ADAPTIVE,
)
