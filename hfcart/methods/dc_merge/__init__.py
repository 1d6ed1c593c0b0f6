"""DC-Merge: the towers' leading directions agree on a small matrix in the space that they span together."""

from __future__ import annotations

from hfcart.methods.contract import Method, Parameter
from hfcart.methods.shared.parameters import MEAN_TASK_VECTOR, scale

_PAPER = """@inproceedings{zhang2026dcmerge,
  title     = {DC-Merge: Improving Model Merging with Directional Consistency},
  author    = {Zhang, Han-Chen and Zhou, Zi-Hao and Luo, Mao-Lin and Di, Shimin and Zhang, Min-Ling and Wei, Tong},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2026}
}"""

METHOD = Method(
    name="dc_merge",
    family="singular directions",
    title="DC-Merge (directional consistency)",
    summary="Every tower's leading directions, merged like TIES in the orthogonal space that all of them cover.",
    matrices="the base plus α times what the towers' leading directions, min(m, n)/T of each, agree on in the space "
    "that they span together: of each tower's coordinates there the largest, merged by sign, tower by tower's block",
    others=MEAN_TASK_VECTOR,
    formula=r"\theta_m = \theta_0 + \alpha\, \hat U M \hat V^\top,"
    r" \qquad M = \mathrm{blockdiag}_T\big(\mathrm{TIES}_\rho(\{\hat U^\top \mathrm{SVD}_k(\tau_t)\, \hat V\}_t)\big),"
    r"\ \hat U = \mathrm{polar}([U_1 \cdots U_T])",
    matrix_rule=f"{__name__}.rule:dc_merge",
    other_rule="hfcart.methods.shared.mean_task_vector:mean_task_vector",
    parameters=(
        scale(1.0, "α"),
        Parameter(
            "kept",
            0.001,
            "Share of each tower's coordinates that counts. The largest, in the space that all span; in (0, 1].",
            above=0.0,
            most=1.0,
            symbol="ρ",
        ),
    ),
    needs_base=True,
    arxiv="2603.06242",
    citation=_PAPER,
    task_vectors=True,
    decomposes=True,
    batched=True,
    any_matrix=True,
    copies=16,
    note="Its authors choose α on validation images, from a grid up to 3. On their towers (fine-tuned 92.8, "
    "90.9, 91.3 for 8, 14, 20 tasks) it has 87.1, 82.5, 80.6 for ViT-B/32, where TSV-M has 85.9, 80.1, 77.1: not to be "
    "held against figures of other towers. Their code takes every 2-D tensor for a matrix, and q, k and v for one: "
    "--matrices all-2d --qkv fused.",
)
