"""`hfcart tasks`, `hfcart tasks show`, `hfcart tasks new`."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfcart.cli._shared.command import Command, Group
from hfcart.cli._shared.output import Output, reporting
from hfcart.cli._shared.params import DEBUG
from hfcart.recipes.options import BASICS, OUTPUT

if TYPE_CHECKING:
    from hfcart.tasks.task_cards import TaskCard

app = typer.Typer(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, add_completion=False)
_JSON = Annotated[bool, typer.Option("--json", help="Print it as JSON.", rich_help_panel=OUTPUT)]


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context, json: _JSON = False) -> None:
    """List the tasks; show one; draft a card for a new one.

    Examples:
        hfcart tasks
        hfcart tasks show eurosat
        hfcart tasks new user/dataset
    """
    if context.invoked_subcommand is None:
        list_(json)


@app.command("list", cls=Command)
def list_(json: _JSON = False) -> None:
    """List the tasks: the same as `hfcart tasks`.

    Examples:
        hfcart tasks list
    """
    with reporting() as output:
        from hfcart.tasks.task_cards import all_tasks

        listed = all_tasks()
        if json:
            output.data(_dump([_facts(task) for task in listed]))
            return
        rows = [
            (task.id, task.title, str(len(task.classnames)), _dataset(task), _rows(task), ", ".join(_groups(task)))
            for task in listed
        ]
        output.table(["task", "title", "classes", "dataset", "test images", "groups"], rows)
        output.note(
            "`hfcart tasks show TASK` shows one whole. Where tasks are asked for, groups and your own YAML "
            "files are taken too."
        )


@app.command(cls=Command)
def show(
    names: Annotated[
        list[str], typer.Argument(metavar="TASK", help="Tasks, groups (8, 14, 20), YAML files or folders of images.")
    ],
    json: _JSON = False,
) -> None:
    """Show everything a task card holds; checks a card of your own.

    Examples:
        hfcart tasks show eurosat
        hfcart tasks show cars.yaml --json
    """
    with reporting() as output:
        from hfcart.tasks.task_cards import read_tasks

        found = read_tasks(names)
        if json:
            facts = [_facts(task) for task in found]
            output.data(_dump(facts[0] if len(facts) == 1 else facts))
            return
        for task in found:
            _show(task, output)


@app.command(cls=Command)
def new(
    dataset: Annotated[
        str, typer.Argument(metavar="USER/DATASET", help="A Hub dataset (user/name@revision), or a folder of images.")
    ],
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The dataset's configuration.", rich_help_panel=BASICS)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write it. Default: the dataset's name, .yaml.", rich_help_panel=BASICS
        ),
    ] = None,
    debug: DEBUG = False,
) -> None:
    """Draft a task card from a dataset's features and README, or from a folder of images.

    It is to be checked by you, and then used wherever a task is asked for.

    Examples:
        hfcart tasks new user/dataset --out cars.yaml
        hfcart tasks new ./photos
    """
    with reporting(debug=debug) as output:
        from hfcart import hub
        from hfcart.errors import OutputError, UsageError
        from hfcart.tasks.drafts import draft_card, draft_folder
        from hfcart.tasks.image_folder import is_folder
        from hfcart.tasks.task_cards import read_card

        hub.set_notifier(output.note)
        if out is not None and out.exists():
            raise _taken(out)
        folder, here = Path(dataset), is_folder(dataset)
        output.step(f"Looking at the {'folder' if here else 'dataset'} {dataset}")
        if here:
            if config is not None:
                raise UsageError(f"{dataset} is a folder, and has no configurations.", hint="Leave out --config.")
            name, text = draft_folder(folder, out)
        else:
            name, text = draft_card(dataset, config)
        path = out or Path(f"{name}.yaml")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise OutputError(f"The draft cannot be written to {path}: {error.strerror}.") from None
        output.essential(str(path))
        try:
            read_card(path)
        except UsageError as error:
            output.warn(f"The draft needs your help before it can be used. {error.message}")
        output.note(f"Check it, then look at it with: hfcart tasks show {shlex.quote(str(path))}")


def _taken(path: Path) -> Exception:
    from hfcart.errors import OutputError

    return OutputError(f"{path} is there already, and is left as it is.", hint="Name another file with --out.")


def _show(task: TaskCard, output: Output) -> None:
    where = task.dataset
    output.result(f"{task.title} ({task.id})")
    facts = {
        "groups": ", ".join(_groups(task)) or "none",
        "dataset": _dataset(task) + (f" at {where.revision}" if where.revision else ""),
        "splits": f"test: {where.test_split} ({_rows(task)} images), train: {where.train_split or 'none'}",
        "columns": _columns(task),
        "license": task.license or "not known for certain",
        "sha256": task.sha256,
        "note": task.note or "none",
    }
    for name, text in facts.items():
        output.result(f"  {name + ':':10}{text}")
    output.result(f"\nPrompts ({len(task.templates)}):")
    for template in task.templates:
        output.result(f"  {template}")
    output.result(f"\nClasses ({len(task.classnames)}):")
    for label, name in enumerate(task.classnames):
        output.result(f"  {label:4}  {name}")
    if task.published or task.fine_tuned:
        output.result("\nPublished, in per cent:")
        bases = dict.fromkeys([*task.fine_tuned, *task.published])
        output.table(
            ["base", "pretrained", "fine-tuned", "fine-tuned tower"], [_published(task, base) for base in bases]
        )
    if task.citation:
        output.result(f"\n{task.citation}")
    output.result()


def _published(task: TaskCard, base: str) -> tuple[str, ...]:
    figures = task.published.get(base)
    accuracies = (f"{figures.pretrained:.2f}", f"{figures.fine_tuned:.2f}") if figures else ("", "")
    return (base, *accuracies, task.fine_tuned.get(base, ""))


def _facts(task: TaskCard) -> dict[str, Any]:
    return {**task.model_dump(mode="json"), "groups": _groups(task), "sha256": task.sha256}


def _groups(task: TaskCard) -> list[str]:
    from hfcart.tasks.task_cards import GROUPS, all_tasks

    ours = any(task == one for one in all_tasks())
    return [name for name, ids in GROUPS.items() if ours and task.id in ids]


def _dataset(task: TaskCard) -> str:
    if task.dataset.folder is not None:
        return f"the folder {task.dataset.folder}"
    return task.dataset.label + (f", {task.dataset.config}" if task.dataset.config else "")


def _columns(task: TaskCard) -> str:
    where = task.dataset
    if where.folder is not None:
        return f"of its metadata, if it has some: labels in {where.label_column}; else folders are the classes"
    return f"images in {where.image_column}, labels in {where.label_column}"


def _rows(task: TaskCard) -> str:
    return f"{task.dataset.test_size:,}" if task.dataset.test_size else "unknown"


def _dump(value: object) -> str:
    return json_module.dumps(value, indent=2, ensure_ascii=False) + "\n"
