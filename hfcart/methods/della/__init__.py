"""DELLA: drop small entries more often than large ones, elect signs, average."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import DENSITY_HELP, SAME, SEED, scale

_PAPER = """@article{deep2024della,
  title   = {DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling},
  author  = {Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya},
  journal = {arXiv preprint arXiv:2406.11617},
  year    = {2024}
}"""

METHOD = Method(
    name="della",
    family="task vectors",
    title="DELLA-Merging (MagPrune)",
    summary="Drop small entries more often than large ones, rescale, elect signs, take the mean of what agrees.",
    matrices="the base plus λ times the mean of the randomly pruned task vectors' entries that have the sign of "
    "their sum; in each row the smaller entries are dropped more often",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \lambda\, \mathrm{mean}\{\hat\tau_t : \mathrm{sgn}(\hat\tau_t) ="
    r" \mathrm{sgn}(\textstyle\sum_s \hat\tau_s)\}, \qquad \hat\tau_t = \frac{m_t \odot \tau_t}{1 - p_r},"
    r"\ p_r = p - \frac{\epsilon}{2} + \frac{\epsilon\, r}{n}",
    matrix_rule=f"{__name__}.rule:della",
    other_rule=f"{__name__}.rule:della",
    parameters=(
        scale(1.0),
        Parameter("density", 0.3, DENSITY_HELP, above=0.0, most=1.0, symbol="1 − p"),
        Parameter(
            "epsilon",
            0.1,
            "How much oftener smallest entries drop. Than a row's largest.",
            least=0.0,
            most=1.0,
            symbol="ε",
        ),
        SEED,
    ),
    needs_base=True,
    arxiv="2406.11617",
    citation=_PAPER,
    task_vectors=True,
    note="The probabilities spread over ε, as in the paper; the authors' code, and mergekit, spread them over 2 ε.",
    copies=3,
)
