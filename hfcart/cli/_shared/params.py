"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hfcart.recipes.options import BASICS, IMAGES, MACHINE, OUTPUT, PUBLISHING
from hfcart.zero_shot.measurement import Measurement

QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the result, warnings and errors.", rich_help_panel=OUTPUT)
]
JSON = Annotated[
    bool,
    typer.Option("--json", help="Print the record as JSON on stdout, the rest on stderr.", rich_help_panel=OUTPUT),
]
DEBUG = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks and the Hub client's log.", rich_help_panel=OUTPUT)
]
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
        metavar="TASKS",
        help="Tasks, groups (8, 14, 20), your own cards, folders of images.\fSeveral with commas. Your own task cards "
        "are named by their paths (FILE.yaml), or by a folder of them; a folder of images (PHOTOS/test/CLASS/x.jpg, or "
        "with a metadata.csv) is a task without a card. `hfcart tasks` lists the others.",
        show_default=False,
        rich_help_panel=BASICS,
    ),
]
SOURCES = Annotated[
    list[str], typer.Argument(metavar="SOURCE", help="Hub repos and local folders, as for `hfcart merge`.")
]
LIMIT = Annotated[
    int | None, typer.Option(help="Score a seeded sample of so many images a task.", rich_help_panel=IMAGES)
]
NO_STREAMING = Annotated[
    bool,
    typer.Option("--no-streaming", help="Keep the images in the cache; do not stream them.", rich_help_panel=IMAGES),
]
DEVICE = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.", rich_help_panel=MACHINE)
]
PRECISION = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="Of the forward pass.\fauto: bfloat16 where the device computes with it. Images whose best two "
        "classes are too close for it are scored again with more digits.",
        rich_help_panel=MACHINE,
    ),
]
WORKERS = Annotated[
    int | None,
    typer.Option(help="Worker threads. Default: one a core, at most 8.\fChanges no number.", rich_help_panel=MACHINE),
]


def measurement(
    tasks: str | None,
    *,
    no_streaming: bool,
    **options: Any,  # noqa: ANN401 (its other fields)
) -> Measurement:
    """What the options of a command ask to be measured; without tasks, those are read later, with the sources.

    Raises UsageError for a task or a value that is none.
    """
    from hfcart.tasks.task_cards import read_tasks

    return Measurement([] if tasks is None else read_tasks([tasks]), streaming=not no_streaming, **options)
