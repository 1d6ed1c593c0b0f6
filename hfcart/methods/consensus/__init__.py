"""Consensus task arithmetic: only entries that matter to several tasks (TALL masks, arXiv 2405.07813)."""

from __future__ import annotations

from hfcart.methods.contract import Chosen, Method, Parameter
from hfcart.methods.shared.parameters import SAME, scale

_PAPER = """@inproceedings{wang2024localizing,
  title     = {Localizing Task Information for Improved Model Merging and Compression},
  author    = {Wang, Ke and Dimitriadis, Nikolaos and Ortiz-Jimenez, Guillermo and Fleuret, Fran{\\c{c}}ois and
               Frossard, Pascal},
  booktitle = {International Conference on Machine Learning},
  year      = {2024}
}"""

METHOD = Method(
    name="consensus",
    family="task vectors",
    title="Consensus task arithmetic (TALL masks)",
    summary="Task arithmetic on the entries that matter to at least two tasks, the base elsewhere.",
    matrices="the base plus α times the sum of the task vectors, in the places that at least `agree` towers' "
    "TALL masks keep (the paper chooses λ and α on validation images; hfcart's defaults, 0.4 and 0.3, are its own)",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \alpha \sum_{t=1}^{T} \tau_t \odot \mathbb{1}\Big[\sum_s m_s \ge k\Big],"
    r" \qquad m_t = \mathbb{1}\big[\,|\tau_t| > \lambda_t\, |\textstyle\sum_s \tau_s - \tau_t|\,\big]",
    matrix_rule=f"{__name__}.rule:consensus",
    other_rule=f"{__name__}.rule:consensus",
    parameters=(
        scale(0.3, "α"),
        Parameter(
            "threshold",
            0.4,
            "λ of the TALL masks, for all sources or for each. In the order given, with commas; 0.2 to 0.6 are usual.",
            kind="each",
            least=0.0,
            symbol="λ",
        ),
        Parameter("agree", 2, "How many towers' masks must keep an entry.", kind="whole", least=1.0, symbol="k"),
    ),
    needs_base=True,
    arxiv="2405.07813",
    citation=_PAPER,
    task_vectors=True,
    note="Its paper has 75.2 for ViT-B/32 and these tasks, λ and α by validation, with towers of its own: not to "
    "be held against the others' figures. The defaults here are nobody's optimum: --tasks chooses each λ, and "
    "`hfcart sweep` then α, on validation images with their labels, as the paper does.",
    chosen=Chosen(
        parameter="threshold",
        candidates=(0.4, 0.3, 0.5, 0.2, 0.6),  # of equally good ones the nearest to the default, then the smaller
        candidate=f"{__name__}.rule:masked",
        formula=r"\theta_0 + m_t \odot \textstyle\sum_s \tau_s",
    ),
    copies=2,
)
