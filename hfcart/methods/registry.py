"""Which methods there are: the folders beside this file, and what installed packages bring."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from hfcart.errors import UsageError
from hfcart.methods.adaptation import ADAPTING
from hfcart.methods.contract import FAMILIES, Method
from hfcart.methods.declaration import check
from hfcart.names import meant, spelled
from hfcart.quoting import printable, quoted

GROUP = "hfcart.methods"  # of entry points: each names a Method


def _own() -> list[Method]:
    folders = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.ispkg]
    modules = [importlib.import_module(f"hfcart.methods.{name}") for name in sorted(folders)]
    found: list[Method] = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    # CART goes first: it is what hfcart is named for.
    return sorted(found, key=lambda method: (method.name != "cart", FAMILIES.index(method.family), method.name))


def _brought(point: EntryPoint) -> Method:
    """The method that an installed package declares. Raises whatever its import raises, or ValueError."""
    found = point.load()
    if not isinstance(found, Method):
        raise ValueError(f"{point.value} is a {type(found).__name__}, expected a hfcart.methods.Method")
    check(found, [*METHODS.values()], ADAPTING)
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    return dataclasses.replace(found, package=package)


METHODS: dict[str, Method] = {method.name: method for method in _own()}
# What a package brings that cannot be used: the entry point's name -> who brings it, and what is wrong with it.
BROKEN: dict[str, str] = {}


def _take_in(point: EntryPoint) -> None:
    try:
        method = _brought(point)
    except Exception as error:  # a stranger's module may raise anything, and --help must still work
        by = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        why = f"{type(error).__name__}: {printable(error, 300)}"
        BROKEN[point.name] = f"{by} brings a method that cannot be used ({why})"
    else:
        METHODS[method.name] = method


for _point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
    _take_in(_point)

# What `adapt` makes of a method, by its own name: -> the method's.
ADAPTIVE = {method.adaptive.name: method.name for method in METHODS.values() if method.adaptive}
# The same where singular directions are chosen too.
RANKED = {
    method.adaptive.ranked.name: method.name
    for method in METHODS.values()
    if method.adaptive and method.adaptive.ranked
}
ADAPTIVE |= RANKED


def behind(name: str) -> Method:
    """The method of that name, or the one that `adapt` makes the named one of. Raises KeyError if there is none."""
    return METHODS[ADAPTIVE.get(name, name)]


def named(name: str) -> str:
    """The name of a method as it is registered, however it was spelled.

    Raises:
        ValueError: there is none, or it is a package's that is broken; the sentence says which was meant.
    """
    if found := spelled(name, METHODS):
        return found
    if name in BROKEN:
        raise ValueError(f"the method {name} is broken: {BROKEN[name]}")
    if adaptive := spelled(name, ADAPTIVE):
        options = "--adapt and --adapt-ranks make" if adaptive in RANKED else "--adapt makes"
        each = "all" if adaptive in RANKED else "both"
        raise ValueError(f"{adaptive} is what {options} of {ADAPTIVE[adaptive]}: give {each} in its place")
    raise ValueError(f"unknown method {quoted(name, 80)}. {meant(name, METHODS)}")


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none, or a package's that is broken.
    """
    if found := spelled(name, METHODS):
        return METHODS[found]
    if name in BROKEN:
        raise UsageError(f"The method {name} is broken: {BROKEN[name]}.", hint="Update that package, or remove it.")
    raise UsageError(
        f"There is no method {quoted(name, 80)}. {meant(name, METHODS)}", hint="`hfcart methods` lists them."
    )
