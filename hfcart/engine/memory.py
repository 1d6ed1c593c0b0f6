"""How much memory a merge takes at most, known before a byte of weights is read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hfcart.engine.plan import Plan

_BASELINE = 330_000_000  # bytes that Python, torch and the Hub's client take before any weight is read
_IMAGES = 220_000_000  # more, of what decodes images and runs towers on them
_SVC_COPIES = 12  # as Method.copies: of one full SVD in float64
_RUN_BYTES = 5 * 8 * (1 << 16)  # of each tower in float64, where sums go through it a run of entries at a time


def peak_bytes(plan: Plan, workers: int) -> int:
    """Expected peak of resident memory, no less than what is taken.

    For each worker T slices of the largest group, the base's, and what reading, algebra and writing take beside them.
    What is copied is held once as stored and once as written: the largest, the token embedding, by one worker.

    Args:
        plan: with its headers read.
        workers: that work on a group each, >= 1.
    """
    beneath = _BASELINE + (_IMAGES if plan.method.statistics else 0)
    tasks, groups = len(plan.towers), [group for group in plan.groups if not group.copied]
    largest = 4 * max(plan.group_elements(group) for group in groups)
    if plan.method.statistics == "fisher":
        largest *= 2  # as many numbers again
    slices = 0
    if plan.method.statistics == "gram":  # counted as the slices are otherwise, and these beside them
        slices = largest * (tasks + (plan.base is not None))
        largest = 4 * max(plan.shapes[group.key][1] ** 2 for group in groups if group.matrix)
    copied = 8 * max((plan.group_elements(group) for group in plan.groups if group.copied), default=0)
    copies = tasks + (plan.base is not None) + _algebra(plan) + _in_two_bytes(plan)
    each = slices + largest * copies + _factors(plan) + tasks * _RUN_BYTES
    return beneath + math.ceil(workers * each) + copied


def front_bytes(plan: Plan) -> tuple[int, int]:
    """What statistics through the merged front take of the cache's disk at most.

    Returns:
        Bytes of what images are before a block, which go when all is gathered; and of Gram matrices, which stay.
    """
    tower, towers = plan.architecture, len(plan.towers)
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    images = 4 * towers * plan.settings["examples"] * tokens * tower.hidden_size
    block = 4 * (3 * tower.hidden_size**2 + tower.intermediate_size**2)  # what q, k and v take is one
    return images, towers * tower.num_hidden_layers * block


def _algebra(plan: Plan) -> float:
    """Copies of a group that the rules take."""
    copies: float = max(plan.method.copies, plan.adapters.copies if plan.adapters else 0)
    if plan.recipe.svc is not None:
        copies = max(copies, _SVC_COPIES)
    if any(tower.base for tower in plan.towers_and_base):
        copies += 3  # of an adapter: W_0 as it is stored, and the sum in float64
    return copies


def _in_two_bytes(plan: Plan) -> float:
    """Copies of a group in dtypes that take half of float32's: as it is stored in a tower, and as it is written."""
    stored = any(spec.dtype != "F32" for tower in plan.towers_and_base for spec in tower.tensors.values())
    return 0.5 * stored + 0.5 * (plan.dtype != "F32")


def _factors(plan: Plan) -> int:
    """Bytes of every tower's factors of rank k, side by side, of the group where they are most."""
    chosen = plan.recipe.adapt_ranks
    if chosen is None and not plan.directions:
        return 0
    from hfcart.maths.low_rank import rank_of  # scipy: not for a plan alone

    rank, times = plan.recipe.parameters.get("rank"), 1
    if chosen is not None:  # by place: all there are to choose from are computed, and then held side by side
        rank, times = chosen, 3
    assert rank is not None  # plan.directions are those of a rank
    matrices = [group for group in plan.groups if group.matrix]
    sizes = [(plan.full_rank(group), plan.group_elements(group)) for group in matrices]
    return times * max(4 * len(plan.towers) * rank_of(rank, k, k) * (k + elements // k) for k, elements in sizes)
