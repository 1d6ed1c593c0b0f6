"""Spherical linear interpolation of two towers, tensor by tensor (Shoemake 1985)."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import SAME, WEIGHTS_HELP

_PAPER = """@inproceedings{shoemake1985animating,
  title     = {Animating Rotation with Quaternion Curves},
  author    = {Shoemake, Ken},
  booktitle = {Proceedings of SIGGRAPH},
  year      = {1985}
}"""

METHOD = Method(
    name="slerp",
    family="between the towers",
    title="Spherical linear interpolation",
    summary="Two towers' tensors, interpolated along the arc between them.",
    matrices="the point between the two towers on the arc from one to the other",
    others=SAME,
    formula=r"\theta_m = \frac{\sin((1 - t)\Omega)}{\sin\Omega}\, \theta_1"
    r" + \frac{\sin(t\Omega)}{\sin\Omega}\, \theta_2,"
    r" \qquad t = \frac{w_2}{w_1 + w_2},\ \Omega = \angle(\theta_1, \theta_2)",
    matrix_rule=f"{__name__}.rule:slerp",
    other_rule=f"{__name__}.rule:slerp",
    parameters=(Parameter("weights", None, WEIGHTS_HELP, kind="numbers", least=0.0),),
    needs_base=False,
    arxiv="2403.13257",
    citation=_PAPER,
    exactly=2,
    copies=2,
)
