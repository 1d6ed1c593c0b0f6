"""SCE: select what varies, weigh by energy, erase the minority (FuseChat, arXiv 2408.07990, Sec. 3.3)."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import SAME

_PAPER = """@article{wan2024fusechat,
  title   = {FuseChat: Knowledge Fusion of Chat Models},
  author  = {Wan, Fanqi and Zhong, Longguang and Yang, Ziyi and Chen, Ruijun and Quan, Xiaojun},
  journal = {arXiv preprint arXiv:2408.07990},
  year    = {2024}
}"""

METHOD = Method(
    name="sce",
    family="between the towers",
    title="SCE (Select, Calculate, Erase)",
    summary="The entries that vary most between towers, weighted by energy, without minority signs.",
    matrices="the base plus the energy-weighted mean of the task vectors, in the places where they vary most, of "
    "those that have the majority's sign",
    others=SAME,
    formula=r"\theta_m = \theta_0 + \frac{\sum_t w_t\, e_t \odot \hat\tau_t}{\sum_t w_t\, e_t},"
    r" \qquad w_t = \frac{\lVert\hat\tau_t\rVert^2}{\sum_s \lVert\hat\tau_s\rVert^2},"
    r"\ e_t = \mathbb{1}[\mathrm{sgn}\,\hat\tau_t = \mathrm{sgn} \textstyle\sum_s \hat\tau_s]",
    matrix_rule=f"{__name__}.rule:sce",
    other_rule=f"{__name__}.rule:sce",
    parameters=(
        Parameter(
            "density",
            0.1,
            "Share of entries kept. In (0, 1]: those that vary most between towers.",
            above=0.0,
            most=1.0,
        ),
    ),
    needs_base=True,
    arxiv="2408.07990",
    citation=_PAPER,
    task_vectors=True,
    copies=5,
)
