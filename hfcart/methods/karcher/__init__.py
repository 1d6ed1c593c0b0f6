"""The Karcher (Fréchet) mean of the towers' directions on the sphere, tensor by tensor (Karcher 1977)."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.parameters import SAME

_PAPER = """@article{karcher1977riemannian,
  title   = {Riemannian Center of Mass and Mollifier Smoothing},
  author  = {Karcher, Hermann},
  journal = {Communications on Pure and Applied Mathematics},
  volume  = {30},
  year    = {1977}
}"""

METHOD = Method(
    name="karcher",
    family="between the towers",
    title="Karcher mean",
    summary="The mean direction of the towers on the sphere, at their mean norm, tensor by tensor.",
    matrices="the direction with the least sum of squared angles to the towers', at the mean of their norms",
    others=SAME,
    formula=r"\theta_m = \overline{\lVert\theta\rVert}\; \arg\min_{\lVert u \rVert = 1}"
    r" \sum_{t=1}^{T} \angle(u, \theta_t)^2",
    matrix_rule=f"{__name__}.rule:karcher",
    other_rule=f"{__name__}.rule:karcher",
    parameters=(),
    needs_base=False,
    arxiv="1407.2087",
    citation=_PAPER,
    copies=2,
)
