"""Parameters and phrases that several methods declare."""

from __future__ import annotations

from hfcart.methods.contract import Parameter

DENSITY_HELP = "Share of each task vector's entries that stays, in (0, 1]."
WEIGHTS_HELP = (
    "How much each source counts, in the order given: numbers of at least 0, on the command line with commas."
)
SAME = "the same as the matrices"
MEAN_TASK_VECTOR = "the base plus α times the mean task vector"


def scale(default: float, symbol: str = "λ") -> Parameter:
    """The factor before the sum of task vectors."""
    return Parameter(
        "scale", default, "λ (α in some papers), the factor before the sum of task vectors.", symbol=symbol
    )


SEED = Parameter("seed", 0, "Of what is drawn at random.", kind="whole", least=0.0, most=2.0**53)
EXAMPLES = Parameter(
    "examples",
    256,
    "How many training images of each task the statistics are gathered on.",
    kind="whole",
    least=1.0,
    most=1e6,
    gathering=True,
)
SEED_OF_GATHERING = Parameter(
    "seed",
    0,
    "Of what is drawn at random.",
    kind="whole",
    least=0.0,
    most=2.0**31 - 1,
    gathering=True,
)
