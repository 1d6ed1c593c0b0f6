"""Registry lines of the methods that look at images: statistics of each tower on its own task, without labels."""

from __future__ import annotations

from hfcart.methods._contract import Method, Parameter

_EXAMPLES = Parameter(
    "examples",
    256,
    "How many training images of each task the statistics are gathered on.",
    kind="whole",
    least=1.0,
    most=1e6,
    gathering=True,
)
_SEED = Parameter(
    "seed",
    0,
    "Of what is drawn at random.",
    kind="whole",
    least=0.0,
    most=2.0**31 - 1,
    gathering=True,
)

_MATENA = """@inproceedings{matena2022merging,
  title     = {Merging Models with Fisher-Weighted Averaging},
  author    = {Matena, Michael S. and Raffel, Colin A.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""
_JIN = """@inproceedings{jin2023dataless,
  title     = {Dataless Knowledge Fusion by Merging Weights of Language Models},
  author    = {Jin, Xisen and Ren, Xiang and Preotiuc-Pietro, Daniel and Cheng, Pengxiang},
  booktitle = {International Conference on Learning Representations},
  year      = {2023}
}"""

INFORMED = (
    Method(
        name="fisher",
        title="Fisher merging",
        summary="The mean of the towers, each entry weighted by how much its tower's predictions depend on it.",
        matrices="the weighted average, entry by entry, with the diagonals of the towers' Fisher information on their "
        "own tasks as weights, raised to at least `floor` and divided by their norms over the whole towers",
        others="the same as the matrices",
        formula=r"\theta_m = \frac{\sum_t w_t \odot \theta_t}{\sum_t w_t},"
        r" \qquad w_t = \frac{\max(F_t, \epsilon)}{\lVert F_t \rVert},"
        r"\ F_t = \mathbb{E}_x \mathbb{E}_{y \sim p(y|x)} \big(\nabla_{\theta_t} \log p(y|x)\big)^2",
        matrix_rule="fisher:fisher",
        other_rule="fisher:fisher",
        parameters=(
            Parameter("floor", 1e-6, "ε: what each diagonal entry of the Fisher information is raised to.", least=0.0),
            _EXAMPLES,
            _SEED,
        ),
        needs_base=False,
        arxiv="2111.09832",
        citation=_MATENA,
        statistics="fisher",
        heads=True,
        published=(68.3, 82.2),
        note="y is summed over all classes where there are at most ten, and drawn once an image elsewhere.",
    ),
    Method(
        name="regmean",
        title="RegMean (Regression Mean)",
        summary="The linear layers whose outputs are nearest to those of every tower's own; the rest averaged.",
        matrices="the least-squares solution for the outputs of every tower's layer on its own task's inputs, the "
        "off-diagonal entries of whose Gram matrices are scaled by `off_diagonal`",
        others="the average",
        formula=r"W_m = \Big(\sum_t W_t \tilde G_t\Big) \Big(\sum_t \tilde G_t\Big)^{-1},"
        r" \qquad G_t = X_t^\top X_t,\ \tilde G_t = \alpha\, G_t + (1 - \alpha)\, \mathrm{diag}(G_t)",
        matrix_rule="regmean:regmean",
        other_rule="average:average",
        parameters=(
            Parameter(
                "off_diagonal",
                0.9,
                "α: what the Gram matrices' off-diagonal entries are multiplied by, in [0, 1].",
                least=0.0,
                most=1.0,
            ),
            _EXAMPLES,
            _SEED,
        ),
        needs_base=False,
        arxiv="2212.09849",
        citation=_JIN,
        statistics="gram",
        published=(71.8, 83.7),
        note="Others scale off-diagonal entries by 0.95.",
        copies=6,
    ),
)
