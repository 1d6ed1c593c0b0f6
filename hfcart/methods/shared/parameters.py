"""Parameters and phrases that several methods declare."""

from __future__ import annotations

from hfcart.methods.contract import Parameter

DENSITY_HELP = "Share of entries kept. Of each task vector, in (0, 1]."
WEIGHTS_HELP = (
    "How much each source counts. In the order given: numbers of at least 0, on the command line with commas."
)
SAME = "the same as the matrices"
MEAN_TASK_VECTOR = "the base plus α times the mean task vector"


def scale(default: float, symbol: str = "λ") -> Parameter:
    """The factor before the sum of task vectors."""
    return Parameter("scale", default, "λ, the factor before the sum of task vectors. α in some papers.", symbol=symbol)


def off_diagonal(default: float) -> Parameter:
    """What Gram matrices are scaled by beside their diagonal."""
    told = "Factor off the Gram diagonal. All other entries of Gram matrices are multiplied by it. In [0, 1]."
    return Parameter("off_diagonal", default, told, least=0.0, most=1.0, symbol="α")


SEED = Parameter("seed", 0, "Of random draws.", kind="whole", least=0.0, most=2.0**53)
EXAMPLES = Parameter(
    "examples",
    256,
    "Training images a task. The statistics are gathered on them.",
    kind="whole",
    least=1.0,
    most=1e6,
    gathering=True,
)
SEED_OF_GATHERING = Parameter(
    "seed",
    0,
    "Of random draws.",
    kind="whole",
    least=0.0,
    most=2.0**31 - 1,
    gathering=True,
)
