"""The progress of a piece of work that the processes of one launch share: each counts, and the first shows the sum."""

from __future__ import annotations

import threading

from hfcart.progress import Progress, Within
from hfcart.quoting import plural
from hfcart.system.processes import Team


def shared_label(label: str, team: Team | None) -> str:
    """The name of a stage: it says in how many processes, if in several."""
    return label if team is None else f"{label} in {plural(team.number, 'process', 'processes')}"


class SharedProgress(Within):
    """A counted stage that this process has its part in. What it is told, all processes add up."""

    def __init__(self, outer: Progress, team: Team, stage: str) -> None:
        """Take who shows it.

        Args:
            outer: told of what all processes have done; the caller starts and finishes the stage there.
            team: of this process.
            stage: the work's name.
        """
        super().__init__(outer)
        self._team, self._stage = team, stage
        self._lock = threading.Lock()
        self._shown = 0

    def advance(self, amount: int) -> None:
        """So much more is done here; 0 to look what others have done."""
        done = self._team.done(self._stage, amount)
        with self._lock:
            super().advance(max(0, done - self._shown))
            self._shown = max(done, self._shown)

    def look(self) -> None:
        """Show what others have done, and raise what they have failed with. In one thread at a time."""
        self._team.check()
        self.advance(0)
