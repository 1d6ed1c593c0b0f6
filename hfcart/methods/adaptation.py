"""What every method with learned coefficients takes: the settings of the learning itself."""

from __future__ import annotations

from hfcart.methods.contract import Parameter

OBJECTIVES = ("entropy", "infomax", "distill")  # as hfcart.learning.adapt.objective has them
ADAPTING = (
    Parameter("steps", 500, "Steps of Adam.", kind="whole", least=1.0, most=1_000_000.0),
    Parameter("lr", 1e-3, "Learning rate of Adam.", above=0.0, most=10.0),
    Parameter("seed", 0, "Of random draws.", kind="whole", least=0.0, most=2.0**53),
)
