"""Model Breadcrumbs: task vectors without their outliers and their dust."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import SAME, scale

_PAPER = """@inproceedings{davari2024model,
  title     = {Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks},
  author    = {Davari, MohammadReza and Belilovsky, Eugene},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}"""

METHOD = Method(
    name="breadcrumbs",
    family="task vectors",
    title="Model Breadcrumbs",
    summary="Task arithmetic without each task vector's outliers and its smallest entries.",
    matrices="the base plus α times the sum of the task vectors, each without its largest and smallest entries "
    "in every tensor",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \alpha \sum_{t=1}^{T} m_t \odot (\theta_t - \theta_0),"
    r" \qquad m_t = \mathbb{1}\big[Q_\beta(|\tau_t|) \le |\tau_t| \le Q_\gamma(|\tau_t|)\big]",
    matrix_rule=f"{__name__}.rule:breadcrumbs",
    other_rule=f"{__name__}.rule:breadcrumbs",
    parameters=(
        scale(0.3, "α"),
        Parameter(
            "beta", 0.85, "Share of the smallest entries to drop. In [0, 1).", least=0.0, most=0.999999, symbol="β"
        ),
        Parameter(
            "gamma", 0.993, "Quantile above which entries are outliers. In (0, 1].", above=0.0, most=1.0, symbol="γ"
        ),
    ),
    needs_base=True,
    arxiv="2312.06795",
    citation=_PAPER,
    task_vectors=True,
    note="Entries are ranked over each tensor; the authors' code ranks within each row of it.",
)
