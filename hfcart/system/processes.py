"""The processes that a launcher started together for one command: the first leads, the others do what it calls for.

The first does all that is done once: it reads the command, asks the Hub, downloads, keeps the records, publishes and
prints. What can be shared it calls the others for, with all that they need to know. They talk through the launcher's
own store of keys and values, not in collectives: no signal ends a collective whose other side is gone, and nobody hears
in it that another process has failed.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hfcart.errors import HfcartError

Value = TypeVar("Value")
AGAIN = "Run the same command again: it goes on where it stopped."
_PATIENCE = 60.0  # seconds without a sign of life after which a process is taken for dead
_GRACE = 3.0  # the same, where this process is about to end
_ANSWER = (
    20.0  # that an error waits for the first's word, which hears nothing in a GPU's collective; torchrun waits for 30
)
_BEAT, _LOOK = 1.0, 0.1  # seconds between two signs of life, and between two looks at the store
_PIECE = 1 << 20  # bytes of one value in the store
_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ENOUGH = 1 << 40  # more than there are pieces of work


def launched() -> int:
    """How many processes were started together, this one among them: 1 without a launcher."""
    return max(1, _number("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process leads."""
    return launched() == 1 or _number("RANK", 0) == 0


def on_this_machine() -> tuple[int, int]:
    """This process's place among those on this machine, and how many these are."""
    number = _number("LOCAL_WORLD_SIZE", 1) if launched() > 1 else 1
    return (_number("LOCAL_RANK", 0) if number > 1 else 0), max(1, number)


def alone() -> dict[str, str]:
    """The environment for a process that is to be none of the launch."""
    return {name: value for name, value in os.environ.items() if name not in _PLACES}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


@dataclass(frozen=True)
class _End:
    """What the first leaves the others with: an error, or a result."""

    error: BaseException | None
    result: Any


class Team:
    """This process among those of its launch. Use as a context manager: leaving it, the first dismisses the others.

    Attributes:
        place: of this process, from 0.
        number: of processes.
        result: of the first, for the others; it sets it before it leaves.
    """

    def __init__(self, store: Any, place: int, number: int, patience: float = _PATIENCE) -> None:  # noqa: ANN401
        """Take the store (torch.distributed's), which all of them have and nobody else uses."""
        self.place, self.number = place, number
        self.result: Any = None
        self._store, self._patience = store, patience
        self._calls, self._stages = 0, 0
        self._beats: dict[int, tuple[int, float]] = {}
        self._leaving = threading.Event()
        self._beating = threading.Thread(target=self._beat, args=(store.clone(),), name="alive", daemon=True)

    @property
    def first(self) -> bool:
        """Whether this process leads."""
        return self.place == 0

    @property
    def who(self) -> str:
        """What messages call this process."""
        return f"process {self.place + 1} of {self.number}"

    def __enter__(self) -> Team:
        """Give signs of life from now on."""
        self._beating.start()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        """Dismiss the others, and wait a moment until they know: the store may end with this process.

        Raises what another process has failed with, where all that this one knows is that a collective broke.
        """
        behind = error
        try:
            if self.first:
                behind = self._behind(error)
                self._post("end", _End(behind and packed(behind), self.result))
                if error is not None:
                    _hang_up()
                until = time.monotonic() + (_GRACE if error else 2 * _GRACE)
                while self._ask("add", "heard", 0) < self.number - 1 and time.monotonic() < until:
                    time.sleep(_LOOK)
        except HfcartError:
            if error is None:
                raise
        finally:
            self._leaving.set()
        if behind is not None and behind is not error:
            raise behind from error

    def _behind(self, error: BaseException | None) -> BaseException | None:
        """The error that an unexpected one comes of, if another process has reported one; else the same."""
        if error is None or isinstance(error, HfcartError | KeyboardInterrupt) or not self._has("failed"):
            return error
        found: BaseException = pickle.loads(self._received("failed"))  # noqa: S301 (another process of ours)
        return found

    def call(self, work: Callable[..., object], *arguments: object) -> None:
        """Have every other process call `work(team, *arguments)`, a function of a module; do not wait for it."""
        self._post(f"call{self._calls}", (work, arguments))
        self._calls += 1

    def follow(self) -> Any:  # noqa: ANN401 (whatever the first's result is)
        """Do what the first calls for until it ends. Returns its result, or raises its error.

        An error of this process's own ends all: the first raises it. Only if that does not answer, it is raised here.
        """
        try:
            while self._awaited(lambda: self._has(f"call{self._calls}") or self._has("end")):
                if not self._has(f"call{self._calls}"):
                    return self._end()
                work, arguments = pickle.loads(self._received(f"call{self._calls}"))  # noqa: S301 (the first's own)
                self._calls += 1
                work(self, *arguments)
        except BaseException as error:
            if not is_told(error):
                self._report(error)
                _hang_up()
                self._end_of_the_first(error)
            raise

    def stage(self) -> str:
        """A new name for a piece of work; every process asks for them in the same order."""
        self._stages += 1
        return f"stage{self._calls}.{self._stages}"

    def take(self, stage: str) -> int:
        """The next piece of that work that nobody has taken, from 0; from any thread."""
        return int(self._ask("add", f"{stage}/taken", 1)) - 1

    def stop(self, stage: str) -> None:
        """Let nobody take any more of that work."""
        self._ask("add", f"{stage}/taken", _ENOUGH)

    def done(self, stage: str, amount: int = 0) -> int:
        """Add to what all of them have done of that work. Returns the sum."""
        return int(self._ask("add", f"{stage}/done", amount))

    def exchange(self, stage: str, value: Value, idle: Callable[[], object] = lambda: None) -> list[Value]:
        """Every process's value, in the order of their places; in every process.

        Args:
            stage: a name that is used for this alone.
            value: of this one; anything that can be pickled.
            idle: called now and then while the others are waited for.
        """
        self._post(f"{stage}/{self.place}", value)
        found = []
        for place in range(self.number):
            key = f"{stage}/{place}"
            self._awaited(lambda key=key: self._has(key), idle)  # type: ignore[misc]
            found.append(value if place == self.place else pickle.loads(self._received(key)))  # noqa: S301
        return found

    def check(self) -> None:
        """Raise what another process has failed with, or that one is dead."""
        if self.first and self._has("failed"):
            raise pickle.loads(self._received("failed"))  # noqa: S301
        if not self.first and self._has("end"):
            self._end()
        for place in range(self.number) if self.first else (0,):
            if not self._alive(place, self._patience):
                which = f"Process {place + 1} of {self.number}" if place else f"The first of {self.number} processes"
                raise HfcartError(
                    f"{which} has given no sign of life for {self._patience:g} seconds.",
                    hint=AGAIN,
                )

    def _awaited(self, there: Callable[[], bool], idle: Callable[[], object] = lambda: None) -> bool:
        """Wait until something is there; raise as `check`."""
        while not there():
            try:
                self.check()
            except BaseException:
                if there():  # it came first
                    break
                raise
            idle()
            time.sleep(_LOOK)
        return True

    def _end(self) -> Any:  # noqa: ANN401
        end: _End = pickle.loads(self._received("end"))  # noqa: S301
        self._ask("add", "heard", 1)
        if end.error is not None:
            end.error.told = True  # type: ignore[attr-defined]
            raise end.error
        return end.result

    def _report(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            told: BaseException = HfcartError(f"{self.who.capitalize()} was stopped.", hint=AGAIN)
        else:
            told = packed(error, self.who)
        try:
            if self._ask("add", "failures", 1) == 1:
                self._post("failed", told)
        except HfcartError:
            return

    def _end_of_the_first(self, own: BaseException) -> None:
        """Raise what the first ended with, if it does; else this process is the one to say that it is gone."""
        until = time.monotonic() + min(_ANSWER, self._patience)
        try:
            while time.monotonic() < until and self._alive(0, min(_GRACE, self._patience)):
                if self._has("end"):
                    self._end()
                    break
                time.sleep(_LOOK)
        except HfcartError as error:
            if is_told(error):
                raise
        if isinstance(own, KeyboardInterrupt):
            own.add_note(f"The first of {self.number} processes is gone. {AGAIN}")

    def _alive(self, place: int, patience: float) -> bool:
        if place == self.place:
            return True
        now, beats = time.monotonic(), int(self._ask("add", f"alive{place}", 0))
        before, since = self._beats.get(place, (-1, now))
        if beats != before:
            since = now
        self._beats[place] = beats, since
        return now - since < patience

    def _beat(self, store: Any) -> None:  # noqa: ANN401
        while not self._leaving.wait(_BEAT):
            try:
                store.add(f"alive{self.place}", 1)
            except RuntimeError:  # whoever needs the store says so
                return

    def _has(self, key: str) -> bool:
        return bool(self._ask("check", [f"{key}#"]))

    def _post(self, key: str, value: object) -> None:
        data = pickle.dumps(value)
        for number, start in enumerate(range(0, len(data), _PIECE)):
            self._ask("set", f"{key}#{number}", data[start : start + _PIECE])
        self._ask("set", f"{key}#", str(len(data)))

    def _received(self, key: str) -> bytes:
        pieces = range(0, int(self._ask("get", f"{key}#")), _PIECE)
        return b"".join(self._ask("get", f"{key}#{number}") for number in range(len(pieces)))

    def _ask(self, what: str, *arguments: object) -> Any:  # noqa: ANN401
        try:
            return getattr(self._store, what)(*arguments)
        except RuntimeError as error:
            raise HfcartError("The processes of this launch have lost each other.", hint=AGAIN) from error


@contextmanager
def together() -> Iterator[Team | None]:
    """The team of this launch for one command; None if this process is alone. Every process calls it equally often."""
    if launched() == 1:
        yield None
        return
    store = _store()
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    _teams.append(f"team{len(_teams)}/")
    with Team(PrefixStore(_teams[-1], store), _number("RANK", 0), launched()) as team:
        yield team


def _hang_up() -> None:
    """Close what torch's collectives run over: who waits in one for this process gets an error, and looks for ours."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized() and distributed.get_backend() == "gloo":
        with suppress(Exception):  # another process was faster
            distributed.destroy_process_group()


_teams: list[str] = []
_telling: list[bool] = []  # whether this process tells how the command ended


def is_told(error: BaseException) -> bool:
    """Whether an error is the first's, which tells it."""
    return getattr(error, "told", False)


def may_tell(error: BaseException) -> bool:
    """Whether this process is the one of its launch that says how the command ended."""
    if launched() == 1:
        return True
    try:
        store, until = _store(), time.monotonic() + _GRACE
        while not (is_first() or _teams or store.check(["told"])) and time.monotonic() < until:
            time.sleep(_LOOK)  # the first knows more: where the work is kept
        if is_told(error) or int(store.add("told", 1)) > 1:
            return False
    except (HfcartError, RuntimeError):
        pass
    _telling.append(True)
    return True


def leave() -> None:
    """Wait, before this process ends with a failure, until one has told it: a launcher ends all when the first ends."""
    if launched() == 1:
        return
    with suppress(HfcartError, RuntimeError, KeyboardInterrupt):
        store, until = _store(), time.monotonic() + _PATIENCE / 2
        if is_first() or _telling:
            store.set("left", "1")
        while not store.check(["left"]) and time.monotonic() < until:
            time.sleep(_LOOK)


def packed(error: BaseException, who: str | None = None) -> BaseException:
    """An error that another process can be sent."""
    if isinstance(error, HfcartError | KeyboardInterrupt):
        with suppress(Exception):  # some cannot be made again from their arguments
            pickle.loads(pickle.dumps(error))  # noqa: S301
            return error
    if isinstance(error, HfcartError):
        packed = HfcartError(error.message, hint=error.hint)
        packed.exit_code = error.exit_code
        return packed
    where = f" in {who}" if who else ""
    unknown = HfcartError(
        f"hfcart met something it did not expect{where} ({type(error).__name__}).",
        hint="Run the same command with --debug and report what it prints.",
    )
    unknown.exit_code = getattr(error, "exit_code", 1)
    unknown.add_note("".join(traceback.format_exception(error)))
    return unknown


@functools.cache
def _store() -> Any:  # noqa: ANN401
    """The launcher's store; without one the first process keeps it, at MASTER_ADDR:MASTER_PORT."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a launcher that is gone would be told in pages of addresses
    from torch.distributed.rendezvous import rendezvous

    try:
        return next(rendezvous("env://"))[0].clone()
    except (RuntimeError, ValueError) as error:
        raise HfcartError(
            f"WORLD_SIZE says that {launched()} processes were launched together, and they cannot find each other.",
            hint="Start them with accelerate launch or torchrun, or unset WORLD_SIZE.",
        ) from error
