"""What a merge does with each group: the rule on T slices, checked, then SVC and LiNeS where they are asked for.

Memory is O(workers × T × the largest group).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from hfcart.clip.tensor_names import PROJECTION, Group
from hfcart.engine.adapters.residuals import Residuals
from hfcart.engine.coefficients import directions_in, kept_in
from hfcart.engine.loop import Workers, workers
from hfcart.engine.plan import Plan
from hfcart.engine.reading import GroupReader, Held
from hfcart.engine.sharing import SharedWorkers
from hfcart.engine.writing import GroupWriter
from hfcart.maths.moments import spread_of
from hfcart.methods import Measure, Merged, Parts, function, keywords_of
from hfcart.methods.lines import alpha_of, factor, norms, scaled
from hfcart.methods.shared.factors import merged_from
from hfcart.methods.svc import calibrated
from hfcart.progress import Progress
from hfcart.system.journal import Line
from hfcart.system.processes import Team


def merge_groups(
    plan: Plan, writer: GroupWriter, device: torch.device, number: int, progress: Progress, team: Team | None = None
) -> None:
    """Merge every group that the journal does not have yet, and add it to the journal.

    Args:
        plan: with its towers fetched and in canonical order.
        writer: of its groups; `writer.done` holds every group's journal line afterwards (of this process's own).
        device: where the algebra is done.
        number: of worker threads, >= 1.
        progress: told the bytes of sources merged.
        team: the processes that share the groups: each of them calls this, with the same groups done.

    Raises:
        NonFiniteError: NaN or Inf in a source, or a result that the output dtype cannot hold.
        KeyboardInterrupt: passed on once the groups at work are written; the folder can be resumed.
    """
    reader = GroupReader(plan, device)
    rules = GroupRules(plan, reader, device)
    residuals = Residuals(plan, plan.adapters, writer, device) if plan.adapters else None
    with workers(number, device, reader, progress) as alone:
        pool = alone if team is None else SharedWorkers(alone, team)
        known = whole_tower_facts(rules, writer, pool)

        def work(group: Group) -> None:
            if group.copied:
                merged = Merged(reader.copied(group))
                writer.note(_line(group, merged, writer.write(group, merged.tensor)))
                return
            with reader.held(group) as held:
                merged, spread = pool.drive(rules.merged, group, held, known)
                digests, norms = writer.write(group, merged.tensor), None
                if residuals:
                    own, norms = residuals.write(group, held.thetas, merged.tensor, pool.drive)
                    digests |= own
            full = min(reader.shape(group)) if merged.rank is not None else None
            writer.note(_line(group, merged, digests, full, spread, norms))

        pool.each("Merging", *writer.to_do(), work)


def _line(
    group: Group,
    merged: Merged,
    digests: dict[str, str],
    full_rank: int | None = None,
    spread: list[list[float]] | None = None,
    norms: list[list[float]] | None = None,
) -> Line:
    """What the journal has of a group."""
    return {
        "group": group.key,
        "sha256": digests,
        "rank": merged.rank,
        "full_rank": full_rank,
        "energy": merged.energy,
        "fallback": merged.fallback,
        "spread": spread,
        **({"adapters": norms} if norms else {}),
    }


def whole_tower_facts(rules: GroupRules, writer: GroupWriter, pool: Workers) -> dict[str, Any]:
    """What the rules must know of all groups before the first is merged: from the journal, or by reading them all."""
    plan = rules.plan
    if not plan.method.fit and plan.recipe.lines is None:
        return {}
    if writer.facts is not None:
        return writer.facts
    groups = [group for group in plan.groups if not group.copied]
    known: dict[str, Any] = {}

    def total(label: str, measure: Callable[[Group, Held], torch.Tensor]) -> torch.Tensor:
        def each(group: Group) -> torch.Tensor:
            with rules.reader.held(group) as held:
                return pool.drive(measure, group, held)

        return pool.total(f"Measuring for {label}", groups, each)

    if plan.method.fit:
        fit = function(plan.method.fit)
        passes = fit(**keywords_of(fit, plan.settings))
        try:
            measure = next(passes)
            for number in itertools.count(1):
                label = f"{plan.method.title.partition(' (')[0]}, pass {number}"
                measure = passes.send(total(label, functools.partial(rules.measured, measure)))
        except StopIteration as end:
            known = end.value
    if plan.recipe.lines is not None:
        sums = total("LiNeS", functools.partial(rules.norms, known))
        known = {**known, "alpha": alpha_of(sums, len(plan.towers))}
    writer.note_facts(known)
    return known


class GroupRules:
    """The method's rules on the groups of a plan. What drives the device calls them."""

    def __init__(self, plan: Plan, reader: GroupReader, device: torch.device) -> None:
        """Load the rules.

        Args:
            plan: what is merged, and how.
            reader: of its groups.
            device: where the algebra is done.
        """
        self.plan = plan
        self.reader = reader
        self._device = device
        self._matrix_rule, self._other_rule = plan.method.load()

    def merged(self, group: Group, held: Held, known: dict[str, Any]) -> tuple[Merged, list[list[float]]]:
        """What becomes of a group, and the inner products of the towers' distances from the centre; on the CPU."""
        thetas, base = held.to(self._device)
        merged = self._merged(group, thetas, base, known)
        beta = self.plan.recipe.lines
        if beta is not None and base is not None:
            by = factor(group.key, self.plan.architecture.num_hidden_layers, known["alpha"], beta)
            merged = merged._replace(tensor=scaled(merged.tensor, base, by))
        spread = spread_of(thetas, base)
        return merged._replace(tensor=merged.tensor.cpu()), spread.tolist()

    def measured(self, measure: Measure, group: Group, held: Held) -> torch.Tensor:
        """A group's part of a statistic of the whole towers."""
        thetas, base = held.to(self._device)
        return measure(thetas, base, **keywords_of(measure, self._of_group(group)))  # type: ignore[no-any-return]

    def norms(self, known: dict[str, Any], group: Group, held: Held) -> torch.Tensor:
        """A group's part of the norms that LiNeS compares: of the summed task vectors, and of the merged one."""
        thetas, base = held.to(self._device)
        assert base is not None  # a method of task vectors has one
        return norms(thetas, base, self._merged(group, thetas, base, known).tensor)

    def made(
        self, known: dict[str, Any], group: Group, thetas: torch.Tensor, base: torch.Tensor | None
    ) -> torch.Tensor:
        """What the group's rule makes of it, with parameters and facts in `known` in place of the recipe's."""
        return self._rule(group)(thetas, **self._keywords(group, base, known)).tensor

    def _merged(self, group: Group, thetas: torch.Tensor, base: torch.Tensor | None, known: dict[str, Any]) -> Merged:
        """What the group's rule makes of it, calibrated if that is asked for."""
        if (apart := self._apart(group)) is not None:
            return self._put_together(apart, group, thetas, base)
        merged = self._rule(group)(thetas, **self._keywords(group, base, known))
        least = self.plan.recipe.svc
        if least is None or base is None or not group.matrix:
            return merged
        return merged._replace(tensor=calibrated(thetas, base, merged.tensor, least))

    def _apart(self, group: Group) -> Callable[..., Parts] | None:
        """What takes a group apart that is put together from parts alone; None for a group that has a rule."""
        recipe = self.plan.recipe
        if recipe.adaptive is None or group.key not in (recipe.coefficients or ()):
            return None
        if group.matrix:
            return function(recipe.adaptive.parts) if recipe.directions is not None else None
        return function(recipe.adaptive.other_parts) if recipe.adaptive.other_parts else None

    def _put_together(
        self, apart: Callable[..., Parts], group: Group, thetas: torch.Tensor, base: torch.Tensor | None
    ) -> Merged:
        """Anchor and components of a group, these with their coefficients and of the directions that stay."""
        offered = {**self.plan.settings, "base": base, "rank": directions_in(self.plan, group)}
        coefficients = self.plan.coefficients_of(group)
        assert coefficients is not None  # `_apart` looked
        return merged_from(apart(thetas, **keywords_of(apart, offered)), coefficients, kept_in(self.plan, group))

    def _rule(self, group: Group) -> Callable[..., Merged]:
        return self._matrix_rule if group.matrix else self._other_rule

    def _keywords(self, group: Group, base: torch.Tensor | None, known: dict[str, Any]) -> dict[str, Any]:
        """What the group's rule names of the recipe's parameters and of all else that is known."""
        # Where LiNeS scales each block, nothing else does: a recipe with `lines` has no scale.
        whole = {"scale": 1.0} if self.plan.recipe.lines is not None else {}
        offered = {**whole, **self.plan.settings, **known, "base": base, **self._of_group(group)}
        # OpenCLIP, which the papers' towers are of, stores visual.proj as width × dim, the transpose of ours.
        offered["transposed"] = group.key == PROJECTION
        offered["coefficients"] = self.plan.coefficients_of(group)
        return keywords_of(self._rule(group), offered)

    def _of_group(self, group: Group) -> dict[str, Any]:
        """What is known of one group: its name, and the statistics of images on it."""
        gathered = self.plan.gathered
        statistics = {**gathered.known, **gathered.of(group, self._device)} if gathered else {}
        return {"key": group.key, **statistics}
