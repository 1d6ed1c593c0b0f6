"""The merge methods: a folder each, with its declaration in `__init__.py` and its rules in `rule.py`.

A new method is a folder, and its tests: parameters, help, card, sweep, adaptation and the README's table come from its
declaration. A package may bring one through the entry-point group `hfcart.methods`. Importing this package imports no
torch: a rule is loaded when it is first needed.
"""

from __future__ import annotations

from hfcart.methods.adaptation import ADAPTING
from hfcart.methods.contract import Adaptive, Chosen, Measure, Merged, Method, Parameter, Parts, function, keywords_of
from hfcart.methods.registry import ADAPTIVE, BROKEN, METHODS, RANKED, behind, method_of, named

__all__ = [
    "ADAPTING",
    "ADAPTIVE",
    "BROKEN",
    "METHODS",
    "RANKED",
    "Adaptive",
    "Chosen",
    "Measure",
    "Merged",
    "Method",
    "Parameter",
    "Parts",
    "behind",
    "function",
    "keywords_of",
    "method_of",
    "named",
]
