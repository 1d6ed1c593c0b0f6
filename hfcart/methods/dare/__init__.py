"""DARE: drop entries of the task vectors at random and rescale the rest."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import DENSITY_HELP, SAME, SEED, scale

_PAPER = """@inproceedings{yu2024language,
  title     = {Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch},
  author    = {Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}"""

METHOD = Method(
    name="dare",
    family="task vectors",
    title="DARE (Drop And REscale)",
    summary="Task arithmetic on task vectors of which a random share is dropped and the rest scaled up.",
    matrices="the base plus λ times the sum of the task vectors, of each of which a random share of the entries "
    "is kept and divided by that share",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \lambda \sum_{t=1}^{T} \frac{m_t \odot (\theta_t - \theta_0)}{1 - p},"
    r" \qquad m_t \sim \mathrm{Bernoulli}(1 - p)",
    matrix_rule=f"{__name__}.rule:dare",
    other_rule=f"{__name__}.rule:dare",
    parameters=(
        scale(0.3),
        Parameter("density", 0.1, DENSITY_HELP, above=0.0, most=1.0, symbol="1 − p"),
        SEED,
    ),
    needs_base=True,
    arxiv="2311.03099",
    citation=_PAPER,
    task_vectors=True,
    copies=2,
)
