"""The sources of one piece of work in the two orders there are: as they were given, and by what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hfcart.quoting import plural
from hfcart.sources.towers import Tower

Value = TypeVar("Value")


@dataclass(frozen=True)
class OrderedTowers:
    """The one place that knows both orders.

    Attributes:
        given: the towers in the order in which the user named them.
        places: for each place of the canonical order, the place of that tower in `given`.
    """

    given: tuple[Tower, ...]
    places: tuple[int, ...]

    @classmethod
    def as_given(cls, towers: Sequence[Tower]) -> OrderedTowers:
        """Before their contents are known, the canonical order is the one given."""
        return cls(tuple(towers), tuple(range(len(towers))))

    def by_content(self) -> OrderedTowers:
        """Ordered by their digests: the order in which they were named cannot change a bit of the result."""

        def key(place: int) -> tuple[str, str, str, str]:
            tower = self.given[place]
            return tower.source.sha256, tower.store.repo or "", tower.store.commit or "", tower.label

        return OrderedTowers(self.given, tuple(sorted(range(len(self.given)), key=key)))

    @property
    def towers(self) -> tuple[Tower, ...]:
        """In canonical order."""
        return self.canonical(self.given)

    def canonical(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """One value for each tower, from the order given to the canonical one."""
        if len(values) != len(self.places):
            raise ValueError(f"{plural(len(values), 'value')} for {plural(len(self.places), 'tower')}")
        return tuple(values[place] for place in self.places)

    def given_order(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """One value for each tower, from the canonical order to the one given."""
        if len(values) != len(self.places):
            raise ValueError(f"{plural(len(values), 'value')} for {plural(len(self.places), 'tower')}")
        back = dict(zip(self.places, values, strict=True))
        return tuple(back[place] for place in range(len(values)))
