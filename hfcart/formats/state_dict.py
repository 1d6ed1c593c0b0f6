"""What a pickled state dict says, without unpickling it: neither Python's unpickler nor torch's ever sees the file.

The few opcodes that torch.save writes are followed, and every object becomes a description: of a storage, of a tensor
in one, of an object of some class, which becomes an inert `Stand` for it, or of something else.
Opcodes: https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from io import BytesIO

from hfcart.formats.pickled_objects import Global, Odd, Refused, Stand, Storage, Value, build, called, named, storage_of

_KEYS = (str, int, float, bytes, type(None))
_MARK = object()


def load(stream: BytesIO, storages: dict[str, Storage]) -> Value:
    """Follow one pickle to its end; the stream stands behind it then.

    Args:
        stream: its bytes.
        storages: key -> what it claims of each storage; filled.

    Returns:
        None, bool, int, float, str, bytes, tuple, list, dict, Tensor, Stand or Odd; anything that is none of them
        within.

    Raises:
        Refused: it names what plain weights do not need, or does what torch.save never does.
        Exception: whatever a broken one leads to.
    """
    machine = _Machine(storages)
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.follow(opcode.name, argument)
    raise Refused("it has no end")


class _Machine:
    """The stack and the memo. What is on them are descriptions, and Python's own plain values."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Value] = []
        self.memo: dict[int, Value] = {}
        self.storages = storages

    def follow(self, name: str, argument: Value) -> None:
        """One opcode."""
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in ("ADDITEMS", "FROZENSET"):
            self._marked()
            if name == "FROZENSET":
                stack.append(Odd())
        elif name in _PUSHES:
            stack.append(_PUSHES[name](argument))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            if type(stack[-1]) is list:
                stack[-1] += items
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            _fill(stack[-1], list(zip(items[::2], items[1::2], strict=True)))
        elif name == "STACK_GLOBAL":
            own, module = stack.pop(), stack.pop()
            stack.append(named(f"{module} {own}" if isinstance(own, str) and isinstance(module, str) else "? ?"))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()
            arguments, function = stack.pop(), stack.pop()
            stack.append(called(function, arguments))
        elif name == "BUILD":  # of an OrderedDict, attributes such as _metadata
            state = stack.pop()
            if isinstance(stack[-1], Stand):
                build(stack[-1], state)
            elif type(stack[-1]) is not dict:
                stack[-1] = Odd("has a state of its own")
        elif name == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        else:
            raise Refused(f"it has the opcode {name}, which torch.save does not write")

    def _marked(self) -> list[Value]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _stored(self, told: Value) -> Storage | Global:
        found = storage_of(told)
        if isinstance(found, Storage) and self.storages.setdefault(found.key, found) != found:
            raise Refused("it describes one storage in two ways")
        return found


def _text(value: str) -> str | bytes:
    """A string of Python 2, whose bytes pickletools gives as characters."""
    data = value.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


# Opcodes that put a value on the stack.
_PUSHES: dict[str, Callable[[Value], Value]] = {
    "MARK": lambda _: _MARK,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_SET": lambda _: Odd(),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda value: value),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"), lambda value: value),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _text),
    "GLOBAL": named,
}


def _fill(into: Value, pairs: list[Value]) -> None:
    for pair in pairs:
        key, value = pair
        if type(key) not in (*_KEYS, bool):  # the hash of nested tuples can take for ever
            raise Refused("a key of it is no string")
        if type(into) is dict:
            into[key] = value
