"""Median: entry by entry, the middle one of the towers."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter

METHOD = Method(
    name="median",
    family="between the towers",
    title="Median",
    summary="The middle one of the towers, entry by entry, nearer to the average as far as asked.",
    matrices="the median, moved towards the average by `blend`",
    others="the same as the matrices",
    formula=r"\theta_m = (1 - \beta)\, \mathrm{median}_t\, \theta_t + \beta\, \bar\theta",
    matrix_rule=f"{__name__}.rule:median",
    other_rule=f"{__name__}.rule:median",
    parameters=(Parameter("blend", 0.0, "How far towards the average, in [0, 1].", least=0.0, most=1.0, symbol="β"),),
    needs_base=False,
    arxiv="2203.05482",
    citation="@misc{median, title = {The median}}",
)
