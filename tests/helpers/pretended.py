"""A device where there is none: tensors of the CPU that say they are on another one, and a guard over them.

`PRETENDED` is what they call their device. Inside of `pretending()` whatever is made on it, or moved to it, is such a
tensor. Operands of both devices in one operation are refused, as a real device refuses them; what makes the host wait
for a device is counted by name.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# torch knows of this device everywhere, and computes nothing on it.
PRETENDED = torch.device("meta")
# Results that the host must wait for: their shape or their value is what the numbers say.
_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "allclose",
}


class There(torch.Tensor):
    """A tensor that says it is on the pretended device."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        found = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=PRETENDED, requires_grad=here.requires_grad,
        )  # fmt: skip
        found.here = here
        return found

    def __repr__(self) -> str:
        return f"There({self.here!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of pretending()")


class Watch(TorchDispatchMode):
    """Runs every operation on what the tensors hold, and counts what the host waits for."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in flat if isinstance(x, There)]
        assert all(x.device != PRETENDED for x in flat if not isinstance(x, There)), f"{function}: made behind its back"
        name = function._schema.name.partition("::")[2]
        asked = kwargs.get("device")
        moved = name in ("_to_copy", "copy_")
        if there and not moved:
            # A number of the host's may take part, as on a real device; so may places to look things up at.
            indices = name.startswith(("index", "_index", "_unsafe_index"))
            wrong = [x for x in flat if not isinstance(x, There) and x.dim() and not indices]
            assert not wrong, f"{function}: operands on the device and off it"
        to_host = name == "_to_copy" and asked is not None and torch.device(asked) != PRETENDED
        from_there = name == "copy_" and isinstance(args[1], There) and not isinstance(args[0], There)
        if there and (name in _WAITS or to_host or from_there):
            self.waits[name] += 1
        result_there = (there and not to_host and not from_there) or (
            asked is not None and torch.device(asked) == PRETENDED
        )
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        plain = pytree.tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
        found = function(*plain[0], **plain[1])
        if not result_there:
            return found
        return self._wrapped(function, found, args, plain)

    @staticmethod
    def _wrapped(function: Any, found: Any, args: Any, plain: Any) -> Any:
        # What an operation works on in place is the same tensor afterwards.
        before = dict(zip(map(id, pytree.tree_leaves(plain)), pytree.tree_leaves((args, {})), strict=False))

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            old = before.get(id(x))
            return old if isinstance(old, There) else There(x)

        return pytree.tree_map(wrap, found)


@contextmanager
def pretending() -> Iterator[Counter[str]]:
    """The pretended device works, in every thread that is started meanwhile; yields the waits, by name."""
    waits: Counter[str] = Counter()
    run, tensor, new, autocast = threading.Thread.run, torch.tensor, torch.Tensor.new_tensor, torch.autocast

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return tensor(*args, **kwargs).to(device)  # which would be made without a word to the guard

    def watched(thread: threading.Thread) -> None:
        with Watch(waits):
            run(thread)

    def cast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if kind == PRETENDED.type else kind, *args, **kwargs)

    def made_like(other: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return made(*args, **{"dtype": other.dtype, "device": other.device} | kwargs)

    def without_gradient(mode: Any) -> None:
        mode.instead = torch.no_grad()  # a tensor that was made in inference mode cannot be one of ours
        mode.instead.__enter__()

    enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    torch.inference_mode.__enter__ = without_gradient  # type: ignore[method-assign]
    torch.inference_mode.__exit__ = lambda mode, *why: mode.instead.__exit__(*why)  # type: ignore[method-assign]
    threading.Thread.run, torch.tensor = watched, made  # type: ignore[method-assign]
    torch.Tensor.new_tensor, torch.autocast = made_like, cast  # type: ignore[method-assign, misc, assignment]
    try:
        with Watch(waits):
            yield waits
    finally:
        threading.Thread.run, torch.tensor = run, tensor  # type: ignore[method-assign]
        torch.Tensor.new_tensor, torch.autocast = new, autocast  # type: ignore[method-assign, misc]
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
