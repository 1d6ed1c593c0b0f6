"""Fisher-weighted averaging (Matena and Raffel, arXiv 2111.09832, Eq. 4), with the diagonal of each task's Fisher."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import EXAMPLES, SEED_OF_GATHERING

_PAPER = """@inproceedings{matena2022merging,
  title     = {Merging Models with Fisher-Weighted Averaging},
  author    = {Matena, Michael S. and Raffel, Colin A.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""

METHOD = Method(
    name="fisher",
    family="images",
    title="Fisher merging",
    summary="The mean of the towers, each entry weighted by how much its tower's predictions depend on it.",
    matrices="the weighted average, entry by entry, with the diagonals of the towers' Fisher information on their "
    "own tasks as weights, raised to at least `floor` and divided by their norms over the whole towers",
    others="the same as the matrices",
    formula=r"\theta_m = \frac{\sum_t w_t \odot \theta_t}{\sum_t w_t},"
    r" \qquad w_t = \frac{\max(F_t, \epsilon)}{\lVert F_t \rVert},"
    r"\ F_t = \mathbb{E}_x \mathbb{E}_{y \sim p(y|x)} \big(\nabla_{\theta_t} \log p(y|x)\big)^2",
    matrix_rule=f"{__name__}.rule:fisher",
    other_rule=f"{__name__}.rule:fisher",
    parameters=(
        Parameter("floor", 1e-6, "What the information's diagonal is raised to.", least=0.0, symbol="ε"),
        EXAMPLES,
        SEED_OF_GATHERING,
    ),
    needs_base=False,
    arxiv="2111.09832",
    citation=_PAPER,
    statistics="fisher",
    heads=True,
    published=(68.3, 82.2),
    note="y is summed over all classes where there are at most ten, and drawn once an image elsewhere.",
)
