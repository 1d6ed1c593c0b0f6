"""`hfcart space`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfcart.cli._shared.output import Output, reporting, size
from hfcart.cli._shared.params import CREATE_PR, DEBUG, MESSAGE, PRIVATE, QUIET
from hfcart.recipes.options import BASICS, OUTPUT

if TYPE_CHECKING:
    from hfcart.commands.space import Made


def space(
    tower: Annotated[
        str, typer.Argument(metavar="TOWER", help="A CLIP vision tower on the Hub: user/name, user/name@revision.")
    ],
    push_to: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Publish it as this Space.", rich_help_panel=BASICS)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="The CLIP model with the text tower.\fDefault: what the tower's record or card says, else the "
            "openai/clip-vit-* of its shape.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks whose labels can be chosen.\fDefault: those that the tower's published results are of.",
            rich_help_panel=BASICS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write it. Default: ./NAME-space.", rich_help_panel=BASICS),
    ] = None,
    no_average: Annotated[
        bool,
        typer.Option(
            "--no-average",
            help="Leave out the average of what was merged.\fIts weights are by far the largest part of the folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace whatever is there.", rich_help_panel=OUTPUT)
    ] = False,
    private: PRIVATE = False,
    create_pr: CREATE_PR = False,
    commit_message: MESSAGE = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Make a Space: an app with which anybody tries a published tower in the browser.

    Examples:
        hfcart space user/merged --push-to user/try-it
        hfcart space user/merged --tasks eurosat,my-task.yaml --out try-it
    """
    with reporting(quiet=quiet, debug=debug) as output:
        from hfcart.commands.space import run_space  # torch: only once the options are right

        made = run_space(
            tower,
            base=base,
            tasks=tasks,
            average=not no_average,
            out=out,
            overwrite=overwrite,
            push_to=push_to,
            private=private,
            create_pr=create_pr,
            message=commit_message,
            progress=output,
        )
        _show(made, push_to, output)


def _show(made: Made, push_to: str | None, output: Output) -> None:
    online = made.published and (made.published.pull_request or made.published.url)
    output.result()
    output.result(f"A Space of {made.record.towers[0].repo}: {made.folder}, {size(_bytes(made.folder))}")
    for i, shown in enumerate(made.record.towers):
        output.result(f"  {'shows   ' if i == 0 else '        '} {shown.title}")
    if made.closed:
        where = f"{online}/settings" if online and push_to else "its settings"
        output.result(f"  secret   {' and '.join(made.closed)} cannot be read by everybody: in {where}, give the")
        output.result("           Space a secret HF_TOKEN, of a token that may read and nothing else.")
    folder = shlex.quote(str(made.folder))
    output.result(f"  try it   python {folder}/app.py  (with Gradio: pip install 'hfcart[space]')")
    if online:
        output.result(f"  online   {online}")
    else:
        output.result(f"  publish  hfcart push {folder} --push-to user/name")
    if output.quiet:
        output.essential(online or str(made.folder))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
