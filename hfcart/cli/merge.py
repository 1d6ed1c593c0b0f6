"""`hfcart merge`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfcart.cli._merge_output import show_plan, show_result
from hfcart.cli._output import Output, reporting
from hfcart.cli._params import CREATE_PR, DEBUG, JSON, MESSAGE, PRIVATE, PUBLISHING, QUIET
from hfcart.cli.eval import show_results
from hfcart.methods import ADAPTING, METHODS

if TYPE_CHECKING:
    from hfcart.recipes.merge_recipe import Recipe

_METHOD, _ADAPTATION, _OUTPUT, _MACHINE = "Method", "Adaptation", "Output", "Machine"


def _parameter_help(name: str) -> str:
    takers = [(m.name, p) for m in METHODS.values() if (p := m.parameter(name))]
    takers += [("--adapt", p) for p in ADAPTING if p.name == name]
    defaults = ", ".join(f"{p.default} for {method}" for method, p in takers if p.default is not None)
    return takers[0][1].help + (f" Default: {defaults}." if defaults else f" For {', '.join(m for m, _ in takers)}.")


def _number(text: str, option: str) -> int | float:
    """1 is a whole number of directions, 1.0 a fraction: the text decides."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number", param_hint=option) from None


_TYPES: dict[str, Any] = {
    "number": float | None,
    "whole": int | None,
    "rank": str | None,
    "choice": str | None,
    "numbers": str | None,
    "each": str | None,
}
_METAVARS = {"rank": "RANK", "numbers": "W,W,...", "each": "X or X,X,..."}


def _with_parameters(command: Callable[..., None]) -> Callable[..., None]:
    """Put an option for every parameter of a method in place of the command's `**parameters`."""
    signature = inspect.signature(command, eval_str=True)
    before = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    position = next(i for i, p in enumerate(before) if p.name == "method") + 1
    options = []
    for parameter in {p.name: p for m in METHODS.values() for p in m.parameters}.values():
        option = typer.Option(
            None,
            parameter.option,
            metavar="|".join(parameter.choices) or _METAVARS.get(parameter.kind),
            help=_parameter_help(parameter.name),
            rich_help_panel=_METHOD,
        )
        kind, annotation = inspect.Parameter.POSITIONAL_OR_KEYWORD, _TYPES[parameter.kind]
        options.append(inspect.Parameter(parameter.name, kind, default=option, annotation=annotation))
    inserted = [*before[:position], *options, *before[position:]]
    command.__signature__ = signature.replace(parameters=inserted)  # type: ignore[attr-defined]
    return command


def typed_parameters(values: Mapping[str, float | int | str | None]) -> dict[str, Any]:
    """The options' values as the recipe has them: numbers out of text."""
    kinds = {p.name: p for m in METHODS.values() for p in m.parameters}
    out: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        out[name] = value
        if kinds[name].kind == "rank":
            out[name] = _number(str(value), kinds[name].option)
        if kinds[name].kind in ("numbers", "each"):
            numbers = tuple(float(_number(part, kinds[name].option)) for part in str(value).split(","))
            out[name] = numbers[0] if kinds[name].kind == "each" and len(numbers) == 1 else numbers
    return out


@_with_parameters
def merge(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Hub repos (user/name, or user/name@branch, tag, commit or refs/pr/N) and local folders, in any mix.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="YAML with the same fields as these options, or a recipe that comes with hfcart, such as "
            "vit-b-32-8-cart; the command line overrides it.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)} (`hfcart methods` explains them). Default: cart.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    lines: Annotated[
        float | None,
        typer.Option(
            metavar="BETA",
            help="LiNeS: scale what is added to the base by α + β·l/(L−1) in block l of L, in place of --scale; α is "
            "computed. For methods that add to a base.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Learn a coefficient for each tower and tensor on unlabelled images of these tasks (as `hfcart "
            "eval` takes them), in place of --scale, where they begin. With cart that is CART++, with task_arithmetic "
            "AdaMerging, with ties AdaMerging++. Takes --steps, --lr and --seed.",
            rich_help_panel=_ADAPTATION,
        ),
    ] = None,
    adapt_split: Annotated[
        str | None,
        typer.Option(
            metavar="train|validation|test",
            help="Which images. The papers take test images; the card then says so. Default: train.",
            rich_help_panel=_ADAPTATION,
        ),
    ] = None,
    adapt_per: Annotated[
        str | None,
        typer.Option(
            metavar="tensor|task",
            help="A coefficient for each tower and tensor, or one for each tower. Default: tensor.",
            rich_help_panel=_ADAPTATION,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images of each task in a batch. Default: 16.", rich_help_panel=_ADAPTATION),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16",
            help="Of the forward pass of adaptation, and of choosing a threshold. Default: bfloat16 on a GPU that has "
            "it, else float32.",
            rich_help_panel=_ADAPTATION,
        ),
    ] = None,
    own_tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="For methods that look at images (fisher, regmean): the tasks that the sources were fine-tuned on, as "
            "`hfcart eval` takes them. Each source finds its own by the cards; SOURCE=TASK says it. With consensus, "
            "each source's --threshold is chosen by accuracy on labelled validation images of its task.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The pretrained tower. Default, for methods that need one and --full-clip: what the sources' cards "
            "say, else the openai/clip-vit-* of their shape.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    qkv: Annotated[
        str | None,
        typer.Option(
            metavar="split|fused",
            help="Merge q, k and v as three matrices, or as one as OpenCLIP stores them. Default: split.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    matrices: Annotated[
        str | None,
        typer.Option(
            metavar="blocks|all-2d",
            help="What counts as a matrix, for methods that look at spectra: the blocks' attention and MLP weights, or "
            "every tensor of two dimensions, so the position embedding too, as in TSV-M's own code. Default: blocks.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    with_projection: Annotated[
        bool | None,
        typer.Option(
            "--with-projection",
            help="Keep the visual projection too: a CLIPVisionModelWithProjection.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    full_clip: Annotated[
        bool | None,
        typer.Option(
            "--full-clip",
            help="Write a whole CLIPModel for zero-shot classification: the base's text tower, projections and "
            "tokenizer around the merged tower.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    allow_distant: Annotated[
        bool | None,
        typer.Option(
            "--allow-distant",
            help="Go on although the towers seem not to be of one ancestor.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write. Default: the name in --push-to, else ./merged.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite", help="Replace an output folder or repo that exists.", rich_help_panel=_OUTPUT),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float16|bfloat16",
            help="Of the output. Default: the widest of the sources.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Such as 5GB (the default) or 500MB.", rich_help_panel=_OUTPUT)
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="NAMES",
            help="Then measure the result on these tasks (as for `hfcart eval`), and put the numbers on its card.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan, and all that the merge would say first, and stop.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Publish the result there, in one commit.", rich_help_panel=PUBLISHING),
    ] = None,
    private: PRIVATE = False,
    create_pr: CREATE_PR = False,
    commit_message: MESSAGE = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda[:N]|mps", help="Where to compute. Default: auto.", rich_help_panel=_MACHINE
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Worker threads, each with one BLAS thread. Default: one a core, at most 8.", rich_help_panel=_MACHINE
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream",
            help="Read tensors from the Hub by ranged requests and keep no copy of the sources on this disk.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    quiet: QUIET = False,
    json: JSON = False,
    debug: DEBUG = False,
    **parameters: float | int | str | None,
) -> None:
    """Merge fine-tuned CLIP vision towers into one, and publish it.

    Example:  hfcart merge user/a user/b user/c --rank 0.08 --push-to user/merged
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launched: it alone reports
    with reporting(quiet=quiet or not first, json=json and first, debug=debug) as output:
        given: dict[str, Any] = {
            "sources": tuple(sources) if sources else None,
            "method": method,
            **typed_parameters(parameters),
            "adapt": adapt,
            "adapt_split": adapt_split,
            "adapt_per": adapt_per,
            "batch_size": batch_size,
            "precision": precision,
            "lines": lines,
            "tasks": (own_tasks,) if own_tasks else None,
            "base": base,
            "qkv": qkv,
            "matrices": matrices,
            "with_projection": with_projection,
            "full_clip": full_clip,
            "allow_distant": allow_distant,
            "out": out,
            "overwrite": overwrite,
            "dtype": dtype,
            "max_shard_size": max_shard_size,
            "push_to": push_to,
            "private": private or None,
            "create_pr": create_pr or None,
            "commit_message": commit_message,
            "eval": tasks,
            "device": device,
            "workers": workers,
            "stream": stream,
        }
        asked = _recipe(recipe, {key: value for key, value in given.items() if value is not None}, output)
        if dry_run:
            from hfcart.commands.merge_and_publish import run_dry

            show_plan(run_dry(asked, output), output)
            return
        from hfcart.commands.merge_and_publish import run_merge

        done = run_merge(asked, output)
        if not first:
            return
        show_result(asked, done.record, done.published, output)
        if done.results is not None:
            show_results(done.results, output)


def _recipe(file: Path | None, given: dict[str, Any], output: Output) -> Recipe:
    from hfcart.errors import UsageError, together
    from hfcart.recipes.merge_recipe import PARAMETERS, make, read

    recorded = read(file) if file else {}
    if file and recorded.get("push_to") and "push_to" not in given:
        output.note(f"{file} asks to publish the result to {recorded['push_to']}.")
    if method := METHODS.get(given.get("method", "")):
        # Another method than the file's: what only the file's takes is not asked of it.
        names = {
            "lines": method.task_vectors,
            "matrices": method.any_matrix,
            "tasks": method.takes_tasks,
            "adapt": method.adaptive is not None,
            **dict.fromkeys(PARAMETERS, False),
        }
        names |= dict.fromkeys((p.name for p in method.parameters), True)
        for name in [name for name, taken in names.items() if not taken]:
            if recorded.pop(name, None) is not None:
                output.note(f"{method.name} takes no {name}: the one in {file} is left out.")
    instead = [("lines", "scale"), ("scale", "lines")]  # each says what the other would
    taken = METHODS.get(str(given.get("method", recorded.get("method"))))
    if taken and taken.chosen:
        instead += [("tasks", taken.chosen.parameter), (taken.chosen.parameter, "tasks")]
    for one, other in instead:
        if one in given and other not in given:
            recorded.pop(other, None)
    fields = {**recorded, **given}
    if not fields.get("sources"):
        raise UsageError(
            "There is nothing to merge: no sources were given.",
            hint=together(
                "Name them: hfcart merge user/a user/b user/c --out merged", "Or a recipe: hfcart merge --recipe FILE"
            ),
        )
    return make(fields, f"{file} and the command line" if file else "the command line")
