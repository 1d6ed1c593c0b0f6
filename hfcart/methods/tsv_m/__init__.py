"""TSV-Merge: every task's leading singular vectors, made orthogonal to each other."""

from __future__ import annotations

from hfcart.methods.contract import Method
from hfcart.methods.shared.parameters import MEAN_TASK_VECTOR, scale

_PAPER = """@inproceedings{gargiulo2025task,
  title     = {Task Singular Vectors: Reducing Task Interference in Model Merging},
  author    = {Gargiulo, Antonio Andrea and Crisostomi, Donato and Bucarelli, Maria Sofia and Scardapane, Simone and
               Silvestri, Fabrizio and Rodol{\\`a}, Emanuele},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025}
}"""

METHOD = Method(
    name="tsv_m",
    family="singular directions",
    title="TSV-Merge (Task Singular Vectors)",
    summary="Give every task 1/T of the singular directions, and make them orthogonal to each other.",
    matrices="the base plus α times the towers' leading singular triplets, min(m, n)/T of each, after both sides' "
    "singular vectors are made orthogonal across towers",
    others=MEAN_TASK_VECTOR,
    formula=r"\theta_m = \theta_0 + \alpha\, \hat U\, \mathrm{diag}(S_1, \dots, S_T)\, \hat V^\top,"
    r" \qquad \hat U = \mathrm{polar}([U_1 \cdots U_T]),\ \hat V = \mathrm{polar}([V_1 \cdots V_T])",
    matrix_rule=f"{__name__}.rule:tsv_m",
    other_rule="hfcart.methods.shared.mean_task_vector:mean_task_vector",
    parameters=(scale(1.0, "α"),),
    needs_base=True,
    arxiv="2412.00081",
    citation=_PAPER,
    task_vectors=True,
    decomposes=True,
    batched=True,
    any_matrix=True,
    copies=13,
    note="Its authors' code takes the position embedding for a matrix as well: --matrices all-2d.",
)
