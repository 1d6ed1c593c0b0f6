"""A weighted average of the towers (Model soups, arXiv 2203.05482)."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.papers import WORTSMAN
from hfcart.methods.shared.parameters import SAME, WEIGHTS_HELP

METHOD = Method(
    name="linear",
    family="between the towers",
    title="Weighted averaging",
    summary="The weighted mean of the towers, tensor by tensor.",
    matrices="the weighted average",
    others=SAME,
    formula=r"\theta_m = \frac{\sum_t w_t \theta_t}{\sum_t w_t}",
    matrix_rule=f"{__name__}.rule:linear",
    other_rule=f"{__name__}.rule:linear",
    parameters=(Parameter("weights", None, WEIGHTS_HELP, kind="numbers", least=0.0),),
    needs_base=False,
    arxiv="2203.05482",
    citation=WORTSMAN,
    copies=2,
)
