"""What a pickle of torch.save speaks of, described: storages, tensors in them, objects of classes.

Nothing is called, nothing imported, and nothing is allocated that the pickle only claims.
What the calls would build: torch._utils and torch.serialization.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
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
class Global:
    """Something that a pickle names: a class, or a function."""

    name: str


def named(argument: str) -> Global:
    """What "module name" names. Raises Refused if it is what no weights need."""
    name = argument.replace(" ", ".", 1)
    owner, _, own = name.rpartition(".")
    storage = owner in ("torch", "torch.cuda", "torch.storage") and own.endswith("Storage")
    known = storage or name in _CALLS or name in _ODD or name in _INERT or name == _ORDERED
    if not known and (name.partition(".")[0] in _PROGRAMS or not re.fullmatch(r"\w+(\.\w+)+", name)):
        raise Refused(f"it names {name[:120]!r}, which no weights need")
    return Global(name)


def storage_of(told: Value) -> Storage | Global:
    """What a persistent id tells: ("storage", class, key, device, elements); in the old format with a view behind.

    Or, in the old format, ("module", class, file of its source, source).
    """
    if type(told) is tuple and len(told) == 4 and told[0] == "module" and isinstance(told[1], Global):
        return told[1]
    if type(told) is not tuple or len(told) not in (5, 6) or told[0] != "storage" or told[5:] not in ((), (None,)):
        raise Refused("it describes a storage as torch.save no longer does")
    kind, key, count = told[1], told[2], told[4]
    if not isinstance(kind, Global) or not isinstance(key, str) or not _natural(count):
        raise Refused("it describes a storage as torch.save does not")
    name = kind.name.rpartition(".")[2].removesuffix("Storage")
    if name not in _STORAGES or not kind.name.endswith("Storage"):
        raise Refused(f"it has a storage of the class {kind.name[:80]}")
    return Storage(key, *_STORAGES[name], count)


def called(function: Value, arguments: Value) -> Value:
    """What a call describes; of calls that describe no tensor nothing is kept."""
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise Refused("it calls what is no function")
    if function.name == _ORDERED and not arguments:
        return {}
    if function.name in _CALLS:
        return _CALLS[function.name](*arguments)
    if function.name in _ODD or function.name in _INERT:
        return Odd(_ODD.get(function.name, "is no tensor"))
    if function.name in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        function = arguments[0] if arguments and isinstance(arguments[0], Global) else function
    return Stand(function.name)


def build(stand: Stand, state: Value) -> None:
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
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if known is None:
        return Odd("has a dtype that safetensors does not have")
    return _tensor(storage, offset, shape, stride, None, None, metadata, dtype=known)


def _typed(function: Value, kind: Value, arguments: Value, _state: Value) -> Value:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, or of a subclass."""
    plain = isinstance(kind, Global) and kind.name in _PLAIN
    return called(function, arguments) if plain else Odd("is of a class of its own")


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
