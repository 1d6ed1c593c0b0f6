"""Registry lines of the methods that end up between the towers: averages of one kind or another."""

from __future__ import annotations

from hfcart.methods._contract import Method, Parameter

_SAME = "the same as the matrices"
_WEIGHTS = "How much each source counts, in the order given: numbers of at least 0, on the command line with commas."

_WORTSMAN = """@inproceedings{wortsman2022model,
  title     = {Model soups: averaging weights of multiple fine-tuned models improves accuracy
               without increasing inference time},
  author    = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Ya and Roelofs, Rebecca and others},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}"""
_SHOEMAKE = """@inproceedings{shoemake1985animating,
  title     = {Animating Rotation with Quaternion Curves},
  author    = {Shoemake, Ken},
  booktitle = {Proceedings of SIGGRAPH},
  year      = {1985}
}"""
_KARCHER = """@article{karcher1977riemannian,
  title   = {Riemannian Center of Mass and Mollifier Smoothing},
  author  = {Karcher, Hermann},
  journal = {Communications on Pure and Applied Mathematics},
  volume  = {30},
  year    = {1977}
}"""
_JANG = """@inproceedings{jang2024model,
  title     = {Model Stock: All We Need Is Just a Few Fine-Tuned Models},
  author    = {Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon},
  booktitle = {European Conference on Computer Vision},
  year      = {2024}
}"""
_WAN = """@article{wan2024fusechat,
  title   = {FuseChat: Knowledge Fusion of Chat Models},
  author  = {Wan, Fanqi and Zhong, Longguang and Yang, Ziyi and Chen, Ruijun and Quan, Xiaojun},
  journal = {arXiv preprint arXiv:2408.07990},
  year    = {2024}
}"""

INTERPOLATION = (
    Method(
        name="linear",
        title="Weighted averaging",
        summary="The weighted mean of the towers, tensor by tensor.",
        matrices="the weighted average",
        others=_SAME,
        formula=r"\theta_m = \frac{\sum_t w_t \theta_t}{\sum_t w_t}",
        matrix_rule="linear:linear",
        other_rule="linear:linear",
        parameters=(Parameter("weights", None, _WEIGHTS, kind="numbers", least=0.0),),
        needs_base=False,
        arxiv="2203.05482",
        citation=_WORTSMAN,
    ),
    Method(
        name="slerp",
        title="Spherical linear interpolation",
        summary="Two towers' tensors, interpolated along the arc between them.",
        matrices="the point between the two towers on the arc from one to the other",
        others=_SAME,
        formula=r"\theta_m = \frac{\sin((1 - t)\Omega)}{\sin\Omega}\, \theta_1"
        r" + \frac{\sin(t\Omega)}{\sin\Omega}\, \theta_2,"
        r" \qquad t = \frac{w_2}{w_1 + w_2},\ \Omega = \angle(\theta_1, \theta_2)",
        matrix_rule="slerp:slerp",
        other_rule="slerp:slerp",
        parameters=(Parameter("weights", None, _WEIGHTS, kind="numbers", least=0.0),),
        needs_base=False,
        arxiv="2403.13257",
        citation=_SHOEMAKE,
        exactly=2,
    ),
    Method(
        name="karcher",
        title="Karcher mean",
        summary="The mean direction of the towers on the sphere, at their mean norm, tensor by tensor.",
        matrices="the direction with the least sum of squared angles to the towers', at the mean of their norms",
        others=_SAME,
        formula=r"\theta_m = \overline{\lVert\theta\rVert}\; \arg\min_{\lVert u \rVert = 1}"
        r" \sum_{t=1}^{T} \angle(u, \theta_t)^2",
        matrix_rule="karcher:karcher",
        other_rule="karcher:karcher",
        parameters=(),
        needs_base=False,
        arxiv="1407.2087",
        citation=_KARCHER,
    ),
    Method(
        name="model_stock",
        title="Model Stock",
        summary="Between the base and the average, as far as the angle between the task vectors says.",
        matrices="a point between the base and the average, nearer to the average the smaller the angle between the "
        "task vectors in that tensor",
        others=_SAME,
        formula=r"\theta_m = t\, \bar\theta + (1 - t)\, \theta_0,"
        r" \qquad t = \frac{T \cos\Omega}{1 + (T - 1) \cos\Omega}",
        matrix_rule="model_stock:model_stock",
        other_rule="model_stock:model_stock",
        parameters=(),
        needs_base=True,
        arxiv="2403.19522",
        citation=_JANG,
        task_vectors=True,
    ),
    Method(
        name="sce",
        title="SCE (Select, Calculate, Erase)",
        summary="The entries that vary most between towers, weighted by energy, without minority signs.",
        matrices="the base plus the energy-weighted mean of the task vectors, in the places where they vary most, of "
        "those that have the majority's sign",
        others=_SAME,
        formula=r"\theta_m = \theta_0 + \frac{\sum_t w_t\, e_t \odot \hat\tau_t}{\sum_t w_t\, e_t},"
        r" \qquad w_t = \frac{\lVert\hat\tau_t\rVert^2}{\sum_s \lVert\hat\tau_s\rVert^2},"
        r"\ e_t = \mathbb{1}[\mathrm{sgn}\,\hat\tau_t = \mathrm{sgn} \textstyle\sum_s \hat\tau_s]",
        matrix_rule="sce:sce",
        other_rule="sce:sce",
        parameters=(
            Parameter(
                "density", 0.1, "Share of the entries kept: those that vary most between towers.", above=0.0, most=1.0
            ),
        ),
        needs_base=True,
        arxiv="2408.07990",
        citation=_WAN,
        task_vectors=True,
        copies=8,
    ),
)
