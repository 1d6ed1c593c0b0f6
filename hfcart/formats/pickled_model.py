"""The state dict of whatever a checkpoint holds: a state dict, one under a usual key, or a whole pickled model."""

from __future__ import annotations

from collections.abc import Iterator

from hfcart.formats.pickled_objects import Odd, Refused, Stand, Tensor, Value

# Under which of their keys checkpoints keep a model, in the order in which they are looked for.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "image_encoder", "net")
_DEEPEST = 100  # of modules within modules
_MOST = 100_000  # modules and tensors of a model


def state_of(loaded: Value) -> dict[str, Tensor]:
    """The tensors that a checkpoint is about, by their names.

    Args:
        loaded: what `load` made of the pickle.

    Raises:
        Refused: it is no model, or holds what is no tensor among its tensors. The message is the rest of a sentence
            that begins with the file's name.
    """
    for _ in range(4):
        held = loaded.state if isinstance(loaded, Stand) else loaded
        if isinstance(loaded, Stand) and type(held.get("_modules")) is dict:
            return _checked(_walked(loaded))
        if type(held) is not dict:
            break
        inner = next(
            (held[key] for key in _KEYS if type(held.get(key)) is dict or isinstance(held.get(key), Stand)), None
        )
        if inner is None:
            break
        loaded = inner
    return _checked(loaded)


def _checked(state: Value) -> dict[str, Tensor]:
    if type(state) is not dict:
        raise Refused(" is not a state dict of tensors")
    for name, value in state.items():
        if type(name) is not str:
            raise Refused(" is not a state dict of tensors: a key of it is no string")
        if name == "__metadata__" or not name.isprintable():  # the first is safetensors' own; no module has the others
            raise Refused(f": {name[:120]!r} is no name of a tensor")
        if not isinstance(value, Tensor | Odd) or value == Odd():
            raise Refused(f" is not a state dict of tensors: its {name[:120]!r} is none")
        if isinstance(value, Odd):
            raise Refused(f": tensor {name[:120]!r} {value.what}")
    return state


def _walked(model: Stand) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in _walk(model):
        if name in found:
            raise Refused(f" holds {name[:120]!r} twice")
        found[name] = value
    return found


def _walk(model: Stand) -> Iterator[tuple[str, Value]]:
    """Names and tensors as `state_dict` has them: of a module, then of each module in it.

    Modules may be shared, as in torch, and in a hostile file refer to each other in circles: both are bounded.
    """
    left, seen = [("", model, 0)], 0
    while left:
        prefix, module, depth = left.pop()
        own = [module.state.get(kind) for kind in ("_parameters", "_buffers")]
        for name, value in (item for held in own if type(held) is dict for item in held.items()):
            seen += 1
            if value is not None:
                yield f"{prefix}{name}", value
        inside = module.state.get("_modules")
        for name, value in inside.items() if type(inside) is dict else ():
            seen += 1
            if isinstance(value, Stand):
                left.append((f"{prefix}{name}.", value, depth + 1))
        if depth > _DEEPEST or seen > _MOST:
            raise Refused(" is a model of more modules than any has")
