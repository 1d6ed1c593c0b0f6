"""The merge methods: one pure function a file, and the registry that lists them.

A new method is its file, its line here, its tests and its entry in the README. Importing this package
imports no torch: a rule is loaded when it is first needed.
"""

from __future__ import annotations

from hfcart.methods._adaptive import ADAMERGING, ADAPTING, CART
from hfcart.methods._contract import Adaptive, Chosen, Measure, Merged, Method, Parameter, Parts, function, keywords_of
from hfcart.methods._informed import INFORMED
from hfcart.methods._interpolation import INTERPOLATION
from hfcart.methods._sparse import SPARSE
from hfcart.methods._spectral import SCALE_HELP, SPECTRAL

_CHOI = """@article{choi2024revisiting,
  title   = {Revisiting Weight Averaging for Model Merging},
  author  = {Choi, Jiho and Kim, Donggyun and Lee, Chanhyuk and Hong, Seunghoon},
  journal = {arXiv preprint arXiv:2412.12153},
  year    = {2024}
}"""
_WORTSMAN = """@inproceedings{wortsman2022model,
  title     = {Model soups: averaging weights of multiple fine-tuned models improves accuracy
               without increasing inference time},
  author    = {Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Ya and Roelofs, Rebecca and others},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}"""
_ILHARCO = """@inproceedings{ilharco2023editing,
  title     = {Editing Models with Task Arithmetic},
  author    = {Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and
               Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""

LINES_CITATION = """@inproceedings{wang2025lines,
  title     = {LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging},
  author    = {Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez, Guillermo and
               Fleuret, Fran{\\c{c}}ois and Frossard, Pascal},
  booktitle = {International Conference on Learning Representations},
  year      = {2025}
}"""

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="cart",
            title="CART (Centered Arithmetic with Rank-reduced Task vectors)",
            summary="Centre the task vectors on the average, keep their top singular directions, add them back.",
            matrices="the average plus λ times the sum of the rank-k approximations of every tower's "
            "distance from that average",
            others="the average",
            formula=r"\theta_m = \bar\theta + \lambda \sum_{t=1}^{T} \mathrm{SVD}_k(\theta_t - \bar\theta),"
            r" \qquad \bar\theta = \frac1T \sum_{t=1}^{T} \theta_t",
            matrix_rule="cart:cart",
            other_rule="average:average",
            parameters=(
                Parameter(
                    "rank",
                    0.08,
                    "How many singular directions to keep: a fraction of min(m, n) in (0, 1], or an integer k "
                    "(1.0 is full rank, 1 is k = 1).",
                    kind="rank",
                ),
                Parameter("scale", 1.0, SCALE_HELP),
            ),
            needs_base=False,
            arxiv="2412.12153",
            citation=_CHOI,
            updates="cart:updates",
            fewest=3,  # two centred task vectors are opposite, and so are their approximations
            decomposes=True,
            any_matrix=True,
            published=(83.0, 90.8),
            note="The authors' README has 84.7 and 92.6, with another rank and scale.",
            adaptive=CART,
        ),
        Method(
            name="average",
            title="Weight averaging",
            summary="The mean of the towers, tensor by tensor.",
            matrices="the average",
            others="the average",
            formula=r"\theta_m = \frac1T \sum_{t=1}^{T} \theta_t",
            matrix_rule="average:average",
            other_rule="average:average",
            parameters=(),
            needs_base=False,
            arxiv="2203.05482",
            citation=_WORTSMAN,
            published=(65.9, 79.6),
        ),
        Method(
            name="task_arithmetic",
            title="Task arithmetic",
            summary="The base model plus λ times the sum of the task vectors.",
            matrices="the base plus λ times the sum of every tower's distance from it",
            others="the same as the matrices",
            formula=r"\theta_m = \theta_0 + \lambda \sum_{t=1}^{T} (\theta_t - \theta_0)",
            matrix_rule="task_arithmetic:task_arithmetic",
            other_rule="task_arithmetic:task_arithmetic",
            parameters=(Parameter("scale", 0.3, SCALE_HELP),),
            needs_base=True,
            arxiv="2212.04089",
            citation=_ILHARCO,
            updates="task_arithmetic:updates",
            task_vectors=True,
            published=(69.1, 84.5),
            adaptive=ADAMERGING,
        ),
        *SPARSE,
        *SPECTRAL,
        *INTERPOLATION,
        *INFORMED,
    )
}

# What `adapt` makes of a method, by its own name: -> the method's.
ADAPTIVE = {method.adaptive.name: method.name for method in METHODS.values() if method.adaptive}


def behind(name: str) -> Method:
    """The method of that name, or the one that `adapt` makes the named one of. Raises KeyError if there is none."""
    return METHODS[ADAPTIVE.get(name, name)]


__all__ = [
    "ADAPTING",
    "ADAPTIVE",
    "LINES_CITATION",
    "METHODS",
    "Adaptive",
    "Chosen",
    "Measure",
    "Merged",
    "Method",
    "Parameter",
    "Parts",
    "behind",
    "function",
    "keywords_of",
]
