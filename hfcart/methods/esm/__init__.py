"""ESM: of each task vector the directions in which it moves its layer's outputs most, made orthogonal to each other."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import MEAN_TASK_VECTOR, SEED_OF_GATHERING, scale

_PAPER = """@inproceedings{li2026essential,
  title     = {Model Merging in the Essential Subspace},
  author    = {Li, Longhua and Qi, Lei and Tian, Qi and Geng, Xin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2026}
}"""

METHOD = Method(
    name="esm",
    family="images",
    title="ESM (Essential Subspace Merging)",
    summary="What moves each tower's layers' outputs most on its own images, made orthogonal, the strong stronger.",
    matrices="the base plus α times the towers' task vectors on the principal directions of what they change in their "
    "layer's outputs, m/T of each, scaled by strength and made orthogonal across towers (the attention's output "
    "projection as TSV-Merge has it), and each matrix by its norm against the other blocks'",
    others=MEAN_TASK_VECTOR,
    formula=r"\theta_m = \theta_0 + \alpha\, 2\, r^2\, \bar\sigma_U \bar\sigma_V\, \hat U \hat V,"
    r" \qquad U = [P_t\, e_t]_t,\ V = [e_t\, n_t^2\, P_t^\top \tau_t]_t\, c^2,"
    r"\ P_t\ \text{of}\ X_t \tau_t^\top",
    matrix_rule=f"{__name__}.rule:esm",
    other_rule="hfcart.methods.shared.mean_task_vector:mean_task_vector",
    parameters=(
        scale(1.0, "α"),
        Parameter(
            "examples",
            32,
            "Training images a task. The statistics are gathered on them.",
            kind="whole",
            least=1.0,
            most=1e6,
            gathering=True,
        ),
        SEED_OF_GATHERING,
    ),
    needs_base=True,
    arxiv="2602.20208",
    citation=_PAPER,
    fit=f"{__name__}.rule:mean_norms",
    task_vectors=True,
    statistics="gram",
    decomposes=True,
    batched=True,
    copies=60,
    note="Its authors choose α on validation images. On towers of their own (fine-tuned 92.8, 90.9, 91.3 for 8, 14, 20 "
    "tasks) it has 88.6, 83.9, 82.3 for ViT-B/32: not to be held against figures of other towers. Their code fuses q, "
    "k and v (--qkv fused), and merges the position embedding and the visual projection as TSV-Merge does.",
)
