"""Iso-C: task arithmetic with a flat spectrum (No Task Left Behind, arXiv 2502.04959, Sec. 4.1)."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.papers import MARCZAK
from hfcart.methods.shared.parameters import MEAN_TASK_VECTOR, scale

METHOD = Method(
    name="iso_c",
    family="singular directions",
    title="Iso-C (isotropic merging in the common subspace)",
    summary="The sum of the task vectors with all its singular values made equal.",
    matrices="the base plus α times the sum of the task vectors with every singular value replaced by their mean "
    "(directions the sum does not have stay out)",
    others=MEAN_TASK_VECTOR,
    formula=r"\theta_m = \theta_0 + \alpha\, \bar\sigma\, U V^\top,"
    r" \qquad \sum_{t=1}^{T} (\theta_t - \theta_0) = U\, \mathrm{diag}(\sigma)\, V^\top",
    matrix_rule=f"{__name__}.rule:iso_c",
    other_rule="hfcart.methods.shared.mean_task_vector:mean_task_vector",
    parameters=(scale(1.3, "α"),),
    needs_base=True,
    arxiv="2502.04959",
    citation=MARCZAK,
    task_vectors=True,
    decomposes=True,
    any_matrix=True,
    copies=11,
    note="The paper's α for 8, 14, 20 tasks: ViT-B/32 1.3, 1.0, 0.9; ViT-L/14 1.5, 1.3, 1.0. With the Hub's "
    "ViT-B/32 towers 1.5 is used. Every 2-D tensor is a matrix to its code: --matrices all-2d.",
)
