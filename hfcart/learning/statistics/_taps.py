"""What goes into the layers of a tower that runs, and what comes out: forward hooks, for several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from hfcart.clip.tensor_names import PREFIX

Held = dict[str, tuple[Tensor, Tensor]]  # name of the layer -> (its input, its output)


def layers(model: nn.Module, chosen: Callable[[str, nn.Module], bool]) -> dict[str, nn.Module]:
    """The layers of a tower that one chooses, by their canonical names, in the tower's order."""
    named = {PREFIX + name.removeprefix(PREFIX): module for name, module in model.named_modules()}
    return {name: module for name, module in named.items() if chosen(name, module)}


@contextmanager
def tapped(modules: Mapping[str, nn.Module]) -> Iterator[Callable[[], Held]]:
    """Tap layers for as long as the context lasts.

    Yields:
        A function that empties the calling thread's vessel and returns it: what each layer took and gave in the next
        forward pass of that thread.
    """
    local = threading.local()

    def take(name: str, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        local.held[name] = (args[0], output)

    def fresh() -> Held:
        local.held = {}
        held: Held = local.held
        return held

    hooks = [module.register_forward_hook(partial(take, name)) for name, module in modules.items()]
    try:
        yield fresh
    finally:
        for hook in hooks:
            hook.remove()
