"""Weight averaging: θ̄ = (1/T) Σ_t θ_t (Model soups, arXiv 2203.05482; CART paper, Eq. 1)."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.papers import WORTSMAN

METHOD = Method(
    name="average",
    family="between the towers",
    title="Weight averaging",
    summary="The mean of the towers, tensor by tensor.",
    matrices="the average",
    others="the average",
    formula=r"\theta_m = \frac1T \sum_{t=1}^{T} \theta_t",
    matrix_rule=f"{__name__}.rule:average",
    other_rule=f"{__name__}.rule:average",
    parameters=(),
    needs_base=False,
    arxiv="2203.05482",
    citation=WORTSMAN,
    published=(65.9, 79.6),
    copies=2,
)
