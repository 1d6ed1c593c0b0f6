"""Iso-CTS: a common space, and what is left of each task beside it."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.papers import MARCZAK
from hfcart.methods.shared.parameters import MEAN_TASK_VECTOR, scale

METHOD = Method(
    name="iso_cts",
    family="singular directions",
    title="Iso-CTS (isotropic merging in common and task-specific subspaces)",
    summary="Iso-C with the weakest common directions given to what is each task's own.",
    matrices="the base plus α times the common directions of the summed task vectors and each tower's own beside "
    "them, made orthogonal, every singular value replaced by the mean",
    others=MEAN_TASK_VECTOR,
    formula=r"\theta_m = \theta_0 + \alpha\, \bar\sigma\, \hat U \hat V^\top,"
    r" \qquad \hat U = \mathrm{polar}([U_1 \cdots U_T\; U_c]),\ \hat V = \mathrm{polar}([V_1 \cdots V_T\; V_c])",
    matrix_rule=f"{__name__}.rule:iso_cts",
    other_rule="hfcart.methods.shared.mean_task_vector:mean_task_vector",
    parameters=(
        scale(1.5, "α"),
        Parameter(
            "common",
            0.8,
            "Share of directions that the common space gets. In (0, 1]; the towers share the rest.",
            above=0.0,
            most=1.0,
        ),
    ),
    needs_base=True,
    arxiv="2502.04959",
    citation=MARCZAK,
    task_vectors=True,
    decomposes=True,
    batched=True,
    any_matrix=True,
    copies=15,
    note="The paper's α for 8, 14, 20 tasks: ViT-B/32 1.5, 1.2, 1.1; ViT-L/14 1.9, 1.5, 1.2. Every 2-D tensor "
    "is a matrix to its code: --matrices all-2d.",
)
