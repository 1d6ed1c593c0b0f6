"""Model Stock: how far to go from the base to the average, by the angle between task vectors."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.parameters import SAME

_PAPER = """@inproceedings{jang2024model,
  title     = {Model Stock: All We Need Is Just a Few Fine-Tuned Models},
  author    = {Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}"""

METHOD = Method(
    name="model_stock",
    family="between the towers",
    title="Model Stock",
    summary="Between the base and the average, as far as the angle between the task vectors says.",
    matrices="a point between the base and the average, nearer to the average the smaller the angle between the "
    "task vectors in that tensor",
    others=SAME,
    formula=r"\theta_m = t\, \bar\theta + (1 - t)\, \theta_0,"
    r" \qquad t = \frac{T \cos\Omega}{1 + (T - 1) \cos\Omega}",
    matrix_rule=f"{__name__}.rule:model_stock",
    other_rule=f"{__name__}.rule:model_stock",
    parameters=(),
    needs_base=True,
    arxiv="2403.19522",
    citation=_PAPER,
    task_vectors=True,
    copies=2,
)
