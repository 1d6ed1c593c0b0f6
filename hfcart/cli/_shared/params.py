"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hfcart.recipes.options import IMAGES, MACHINE, PUBLISHING
from hfcart.zero_shot.measurement import Measurement

QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result, warnings and errors.")]
JSON = Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout, everything else on stderr.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the Hub client's log.")]
PRIVATE = Annotated[
    bool,
    typer.Option("--private", help="Make the repo private if it is created.", rich_help_panel=PUBLISHING),
]
CREATE_PR = Annotated[
    bool,
    typer.Option("--create-pr", help="Open a pull request instead of committing to main.", rich_help_panel=PUBLISHING),
]
MESSAGE = Annotated[
    str | None,
    typer.Option("--commit-message", metavar="TEXT", help="Message of the commit.", rich_help_panel=PUBLISHING),
]
# What measures: eval, sweep and compare.
TASKS = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Tasks, groups of them (8, 14, 20), your own task cards (FILE.yaml) and folders of them, with commas. "
        "`hfcart tasks` lists them.",
        show_default=False,
    ),
]
LIMIT = Annotated[
    int | None, typer.Option(help="Score a seeded sample of so many images of each task.", rich_help_panel=IMAGES)
]
NO_STREAMING = Annotated[
    bool,
    typer.Option(
        "--no-streaming", help="Keep the images in the cache instead of streaming them.", rich_help_panel=IMAGES
    ),
]
DEVICE = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.", rich_help_panel=MACHINE)
]
PRECISION = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="Of the forward pass. auto: bfloat16 where the device computes with it. Images whose best two "
        "classes are too close for it are scored again with more digits.",
        rich_help_panel=MACHINE,
    ),
]
WORKERS = Annotated[
    int | None,
    typer.Option(help="Threads; changes no number. Default: one a core, at most 8.", rich_help_panel=MACHINE),
]


def measurement(tasks: str, *, no_streaming: bool, **options: Any) -> Measurement:  # noqa: ANN401 (its other fields)
    """What the options of a command ask to be measured. Raises UsageError for a task or a value that is none."""
    from hfcart.tasks.task_cards import read_tasks

    return Measurement(read_tasks([tasks]), streaming=not no_streaming, **options)
