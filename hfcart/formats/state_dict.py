"""What a pickled state dict says, without unpickling it: neither Python's unpickler nor torch's ever sees the file.

The few opcodes that torch.save writes are followed, and every object becomes a description: of a storage, of a tensor
in one, of an object of some class, which becomes an inert `Stand` for it, or of something else. Nothing is called,
nothing imported, and nothing is allocated that the pickle only claims.
Opcodes: https://docs.python.org/3/library/pickletools.html; what they build: torch._utils and torch.serialization.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from typing import Any

import torch

# Storage class -> safetensors dtype (None: it has none) and bytes an element.
_STORAGES: dict[str, tuple[str | None, int]] = {
    "Float": ("F32", 4), "Double": ("F64", 8), "Half": ("F16", 2), "BFloat16": ("BF16", 2), "Long": ("I64", 8),
    "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1), "Bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8), "ComplexDouble": (None, 16), "QInt8": (None, 1), "QUInt8": (None, 1),
    "QInt32": (None, 4), "QUInt4x2": (None, 1), "QUInt2x4": (None, 1), "Untyped": ("U8", 1),
}  # fmt: skip
# dtypes without a storage class of their own: the storage is bytes, the tensor says what they are.
_DTYPES = {
    "torch.float8_e4m3fn": ("F8_E4M3", 1), "torch.float8_e5m2": ("F8_E5M2", 1),
    "torch.uint16": ("U16", 2), "torch.uint32": ("U32", 4), "torch.uint64": ("U64", 8),
}  # fmt: skip
_ODD = {
    "torch._utils._rebuild_qtensor": "is quantized",
    "torch._utils._rebuild_sparse_tensor": "is sparse",
    "torch._utils._rebuild_nested_tensor": "is nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "has no data",
    "torch._utils._rebuild_wrapper_subclass": "is of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "is no plain tensor",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "is no plain tensor",
}
_ORDERED = "collections.OrderedDict"
# What a checkpoint may hold beside its tensors: of no interest, and never called.
_INERT = {
    *(f"torch.{n}" for n, v in vars(torch).items() if isinstance(v, torch.dtype | torch.qscheme | torch.layout)),
    *("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
    *("collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex"),
    *("__builtin__.bytearray", "__builtin__.set", "__builtin__.complex"),
}
# What no object of a model is of: a pickle that names one of these is a program.
_PROGRAMS = {
    *("os", "posix", "nt", "posixpath", "ntpath", "sys", "builtins", "__builtin__", "subprocess", "importlib", "runpy"),
    *("socket", "shutil", "pty", "code", "codeop", "ctypes", "webbrowser", "multiprocessing", "threading", "asyncio"),
    *("pickle", "_pickle", "cPickle", "marshal", "imp", "pip", "pydoc", "timeit", "profile", "cProfile", "trace"),
    *("urllib", "http", "httpx", "requests", "ftplib", "smtplib", "signal", "tempfile", "linecache", "commands"),
    *("_posixsubprocess", "_frozen_importlib", "bdb", "pdb", "doctest", "platform", "glob", "fileinput", "types"),
}
_PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter")
_KEYS = (str, int, float, bytes, type(None))
_MARK = object()

Value = Any
"""Whatever a pickle holds, described: nothing of it can be relied on."""


class Refused(Exception):
    """The pickle is none of plain weights; the message is the reason, a clause."""


@dataclass(frozen=True)
class Storage:
    """A block of memory that the file holds, as the pickle claims it: `count` elements of `size` bytes."""

    key: str
    dtype: str | None
    size: int
    count: int


@dataclass(frozen=True)
class Tensor:
    """A tensor in a storage, known to lie within it: everything in elements of `size` bytes."""

    storage: Storage
    dtype: str
    size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes when it is written out."""
        return self.size * prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the tensor's first to its last in the storage, both included; 0 for an empty tensor."""
        return _span(self.shape, self.stride)

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in the storage in the order of safetensors, last dimension first."""
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n > 1 and stride != step:
                return False
            step *= n
        return True


@dataclass(frozen=True)
class Odd:
    """Anything else: `what` it is, as the end of a sentence that begins with its name."""

    what: str = "is no tensor"


@dataclass(eq=False)
class Stand:
    """What stands for an object of a class of which nothing is known but the name: its attributes, if it has any."""

    kind: str
    state: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str


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
    """The stack and the memo. What is on them are the descriptions above, and Python's own plain values."""

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
            stack.append(_global(f"{module} {own}" if isinstance(own, str) and isinstance(module, str) else "? ?"))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "BUILD":  # of an OrderedDict, attributes such as _metadata
            state = stack.pop()
            if isinstance(stack[-1], Stand):
                _build(stack[-1], state)
            elif type(stack[-1]) is not dict:
                stack[-1] = Odd("has a state of its own")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            raise Refused(f"it has the opcode {name}, which torch.save does not write")

    def _marked(self) -> list[Value]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _storage(self, told: Value) -> Storage | _Global:
        """From the persistent id: ("storage", class, key, device, elements); in the old format with a view behind.

        Or, in the old format, ("module", class, file of its source, source).
        """
        if type(told) is tuple and len(told) == 4 and told[0] == "module" and isinstance(told[1], _Global):
            return told[1]
        if type(told) is not tuple or len(told) not in (5, 6) or told[0] != "storage" or told[5:] not in ((), (None,)):
            raise Refused("it describes a storage as torch.save no longer does")
        kind, key, count = told[1], told[2], told[4]
        if not isinstance(kind, _Global) or not isinstance(key, str) or not _natural(count):
            raise Refused("it describes a storage as torch.save does not")
        name = kind.name.rpartition(".")[2].removesuffix("Storage")
        if name not in _STORAGES or not kind.name.endswith("Storage"):
            raise Refused(f"it has a storage of the class {kind.name[:80]}")
        found = Storage(key, *_STORAGES[name], count)
        if self.storages.setdefault(key, found) != found:
            raise Refused("it describes one storage in two ways")
        return found


def _text(value: str) -> str | bytes:
    """A string of Python 2, whose bytes pickletools gives as characters."""
    data = value.encode("latin-1")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _global(argument: str) -> _Global:
    name = argument.replace(" ", ".", 1)
    owner, _, own = name.rpartition(".")
    storage = owner in ("torch", "torch.cuda", "torch.storage") and own.endswith("Storage")
    known = storage or name in _CALLS or name in _ODD or name in _INERT or name == _ORDERED
    if not known and (name.partition(".")[0] in _PROGRAMS or not re.fullmatch(r"\w+(\.\w+)+", name)):
        raise Refused(f"it names {name[:120]!r}, which no weights need")
    return _Global(name)


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
    "GLOBAL": _global,
}


def _fill(into: Value, pairs: list[Value]) -> None:
    for pair in pairs:
        key, value = pair
        if type(key) not in (*_KEYS, bool):  # the hash of nested tuples can take for ever
            raise Refused("a key of it is no string")
        if type(into) is dict:
            into[key] = value


def _called(function: Value, arguments: Value) -> Value:
    """What a call describes; of calls that describe no tensor nothing is kept."""
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise Refused("it calls what is no function")
    if function.name == _ORDERED and not arguments:
        return {}
    if function.name in _CALLS:
        return _CALLS[function.name](*arguments)
    if function.name in _ODD or function.name in _INERT:
        return Odd(_ODD.get(function.name, "is no tensor"))
    if function.name in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        function = arguments[0] if arguments and isinstance(arguments[0], _Global) else function
    return Stand(function.name)


def _build(stand: Stand, state: Value) -> None:
    """The attributes that an object is given: a dict, or a pair of dicts where its class has slots."""
    for part in state if type(state) is tuple and len(state) == 2 else (state,):
        if type(part) is dict:
            stand.state |= {key: value for key, value in part.items() if type(key) is str}


def _tensor(storage: Value, offset: Value, shape: Value, stride: Value, _grad: Value = None, _hooks: Value = None,
            metadata: Value = None, *, dtype: tuple[str, int] | None = None) -> Tensor | Odd:  # fmt: skip
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    if not isinstance(storage, Storage) or not _natural(offset):
        return Odd("is described as torch.save does not")
    sizes = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= 16
    if not sizes or not all(map(_natural, (*shape, *stride))):
        return Odd("has a shape that is not a short list of sizes")
    if metadata is not None and (type(metadata) is not dict or len(metadata) > 8 or any(metadata.values())):
        return Odd("is a conjugated or negated view of its values")
    own, size = dtype or (storage.dtype, storage.size)
    if own is None:
        return Odd("has a dtype that safetensors does not have")
    held = storage.size * storage.count
    if size * prod(shape) > held:
        return Odd(f"claims {size * prod(shape):,} bytes, its storage has {held:,}: it is expanded, or broken")
    if prod(shape) and size * (offset + _span(shape, stride)) > held:
        return Odd(f"reaches beyond its storage of {held:,} bytes")
    return Tensor(storage, own, size, offset, shape, stride)


def _tensor_v3(storage: Value, offset: Value, shape: Value, stride: Value, _grad: Value, _hooks: Value, dtype: Value,
               metadata: Value = None) -> Tensor | Odd:  # fmt: skip
    """torch._utils._rebuild_tensor_v3: the dtype stands beside a storage of bytes."""
    known = _DTYPES.get(dtype.name) if isinstance(dtype, _Global) else None
    if known is None:
        return Odd("has a dtype that safetensors does not have")
    return _tensor(storage, offset, shape, stride, None, None, metadata, dtype=known)


def _typed(function: Value, kind: Value, arguments: Value, _state: Value) -> Value:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, or of a subclass."""
    plain = isinstance(kind, _Global) and kind.name in _PLAIN
    return _called(function, arguments) if plain else Odd("is of a class of its own")


_CALLS: dict[str, Callable[..., Value]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _typed,
}


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else 0
