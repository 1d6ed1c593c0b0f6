"""How long a command waits for the Hub: for one answer, for as long as the Hub asks, and for silence in all."""

from __future__ import annotations

import os
import time


def _seconds(name: str, default: float) -> float:
    try:
        return max(0.0, float(os.environ.get(name) or default))
    except ValueError:
        return default


TRIES = 4
RETRY_BASE = _seconds("HFCART_RETRY_BASE", 1.0)  # seconds before the second try; doubles with each
MAX_WAIT = _seconds("HFCART_MAX_WAIT", 60.0)  # seconds, where the Hub asks for a wait; if it asks for more, none
# Seconds of silence until a request has failed: to read, and to write (a commit of many files may take its time).
READ_TIMEOUT = min(_seconds("HFCART_TIMEOUT", _seconds("HF_HUB_DOWNLOAD_TIMEOUT", 10.0)) or 10.0, 60.0)
WRITE_TIMEOUT = min(6 * READ_TIMEOUT, 60.0)
# Seconds of silence in one command, however many requests share them. Then requests are no more than a look whether
# there is an answer at once, and after a few of those nothing is sent. With a last write that begins just before, the
# pauses between tries and the looks, no command spends three minutes on a server that is silent.
SILENCE = min(8 * READ_TIMEOUT, 80.0)
LOOK = READ_TIMEOUT / 5
LOOKS = 6 * LOOK
_REGAINED = 1 / 20  # seconds for each second that passes: in a long run, a short silence now and then is no silence


class Silence:
    """The seconds that a silent server has cost; what several threads have waited at the same time counts once."""

    def __init__(self) -> None:
        """Begin with none."""
        self.restart()

    def restart(self) -> None:
        """A new command begins."""
        self._spent, self._at = 0.0, time.monotonic()

    def add(self, seconds: float) -> None:
        """There has been no byte for so long, up to now."""
        now, before = time.monotonic(), self._at
        self._spent, self._at = self.spent + min(seconds, now - before), now

    @property
    def spent(self) -> float:
        """Seconds, less what has been regained."""
        return max(0.0, self._spent - _REGAINED * (time.monotonic() - self._at))

    @property
    def timeout(self) -> float | None:
        """Seconds that a request may wait: None for its own bound, LOOK or 0 where there has been too much silence."""
        spent = self.spent
        return None if spent < SILENCE else LOOK if spent < SILENCE + LOOKS else 0.0


silence = Silence()
