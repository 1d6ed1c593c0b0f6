"""RegMean: the linear layer whose outputs are nearest to every tower's own (Jin et al., arXiv 2212.09849, Eq. 2)."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.parameters import EXAMPLES, SEED_OF_GATHERING, off_diagonal

_PAPER = """@inproceedings{jin2023dataless,
  title     = {Dataless Knowledge Fusion by Merging Weights of Language Models},
  author    = {Jin, Xisen and Ren, Xiang and Preotiuc-Pietro, Daniel and Cheng, Pengxiang},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""

METHOD = Method(
    name="regmean",
    family="images",
    title="RegMean (Regression Mean)",
    summary="The linear layers whose outputs are nearest to those of every tower's own; the rest averaged.",
    matrices="the least-squares solution for the outputs of every tower's layer on its own task's inputs, the "
    "off-diagonal entries of whose Gram matrices are scaled by `off_diagonal`",
    others="the average",
    formula=r"W_m = \Big(\sum_t W_t \tilde G_t\Big) \Big(\sum_t \tilde G_t\Big)^{-1},"
    r" \qquad G_t = X_t^\top X_t,\ \tilde G_t = \alpha\, G_t + (1 - \alpha)\, \mathrm{diag}(G_t)",
    matrix_rule=f"{__name__}.rule:regmean",
    other_rule="hfcart.methods.average.rule:average",
    parameters=(off_diagonal(0.9), EXAMPLES, SEED_OF_GATHERING),
    needs_base=False,
    arxiv="2212.09849",
    citation=_PAPER,
    statistics="gram",
    published=(71.8, 83.7),
    note="Others scale off-diagonal entries by 0.95.",
    copies=13,
)
