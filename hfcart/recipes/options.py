"""How a field of a recipe is typed and explained: the one place from which options, help and checks are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hfcart.methods import Method

# Panels of the help, in the order in which it shows them.
BASICS = "Basics"
MERGED = "What is merged"
ADAPTATION = "Adaptation"
TRAINING = "Training"
OUTPUT = "Output"
PUBLISHING = "Publishing"
IMAGES = "Images"
MACHINE = "Machine"
METHOD = "Parameters of single methods"
PANELS = (BASICS, MERGED, ADAPTATION, TRAINING, OUTPUT, PUBLISHING, IMAGES, MACHINE, METHOD)


@dataclass(frozen=True)
class Option:
    """What stands beside a recipe's field: its type, default and bounds are the field's own.

    Attributes:
        help: one short line.
        panel: one of PANELS.
        more: what does not fit on that line, for the reference; empty if nothing.
        metavar: how a value is written, such as FOLDER; empty to take it from the field's type.
        default: the default in words, where the field's own says nothing.
        taken: which methods take the field; None if all do.
        recorded: whether a finished merge's recipe states it: `always`, `changed` where it is not the default, or
            never, where it cannot change a byte (or is recorded with the method's parameters).
    """

    help: str
    panel: str
    more: str = ""
    metavar: str = ""
    default: str = ""
    taken: Callable[[Method], bool] | None = None
    recorded: Literal["never", "always", "changed"] = "never"
