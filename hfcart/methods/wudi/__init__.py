"""WUDI-Merging: a merged task vector that interferes least with each one."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter

_PAPER = """@inproceedings{cheng2025whoever,
  title     = {Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors},
  author    = {Cheng, Runxi and Xiong, Feng and Wei, Yongxian and Zhu, Wanyun and Yuan, Chun},
  booktitle = {International Conference on Machine Learning},
  year      = {2025}
}"""

METHOD = Method(
    name="wudi",
    family="singular directions",
    title="WUDI-Merging",
    summary="Without data, find the task vector whose difference from each tower's lies outside its row space.",
    matrices="the base plus the task vector that interferes least with each tower's own, found by Adam from their sum",
    others="the base",
    formula=r"\theta_m = \theta_0 + \arg\min_{\tau} \sum_{t=1}^{T}"
    r" \frac{\lVert (\tau - \tau_t)\, \tau_t^\top \rVert_F^2}{\lVert \tau_t \rVert_F^2},"
    r" \qquad \tau_t = \theta_t - \theta_0",
    matrix_rule=f"{__name__}.rule:wudi",
    other_rule="hfcart.methods.shared.base:base",
    parameters=(
        Parameter("steps", 300, "Steps of Adam.", kind="whole", least=0.0, most=100_000.0),
        Parameter("lr", 1e-5, "Learning rate of Adam.", above=0.0, most=1.0),
    ),
    needs_base=True,
    arxiv="2503.08099",
    citation=_PAPER,
    task_vectors=True,
    copies=16,
    published=(85.2, 92.6),
    note="Published for OpenCLIP's towers; 84.5 was reached with the Hub's ViT-B/32.",
)
