"""`hfcart.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from hfcart.api._calling import calling, names_of, plain, text_of, texts
from hfcart.api.options import CompareOptions, Names, StrPath
from hfcart.system.processes import together

if TYPE_CHECKING:
    from hfcart.api.results import Compared
    from hfcart.progress import Progress


def compare(
    sources: Sequence[StrPath],
    tasks: Names,
    *,
    progress: bool | Progress = False,
    **options: Unpack[CompareOptions],
) -> Compared:
    """Find the best method, as `hfcart compare` does: merge with each, measure all on the same images. Prints nothing.

        table = hfcart.compare(towers, "8", methods=["cart", "average", "ties"])

    Args:
        sources: Hub repos and local folders, as for `hfcart.merge`.
        tasks: what is measured, as for `hfcart.evaluate`.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Basics:
            methods (names): Such as cart,average,cart++, or all. Default: all that learn nothing.
            base (path): The CLIP model with the text tower. Default: by cards or shape.
            out (path): Where to write. Default: compare.
        Output:
            overwrite (bool): Replace an earlier comparison.
        Images:
            references ("measured" | "none"): The base and each task's own tower, or not. Default: measured.
            part ("validation" | "test" | "train"): Which images. Default: validation.
            limit (int): Score a seeded sample of so many images a task.
            streaming (bool): Read images over the network; False keeps them in the cache. Default: True.
        Machine:
            device (str): Where to compute. Default: auto.
            precision ("auto" | "float32" | "bfloat16"): Of the forward pass. Default: auto.
            workers (int): Worker threads. Default: one a core, at most 8.

    Returns:
        A row a method (what compare.json holds), with the folder. A method that failed is a row with its error.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("compare", options, CompareOptions.__annotations__, progress) as listener, together() as team:
        from hfcart.api.results import Compared

        folder = Path(text_of(options.get("out") or "compare"))
        if team is not None and not team.first:
            return Compared.of(team.follow(), folder=folder)
        from hfcart.commands.compare import run_compare
        from hfcart.tasks.task_cards import read_tasks
        from hfcart.zero_shot.measurement import Measurement, split_options

        how, rest = split_options({"references": "measured", "part": "validation", **plain(options)})
        measurement = Measurement(read_tasks(names_of(tasks)), **how)
        rest.pop("out", None)
        methods = [name.strip() for text in names_of(rest.pop("methods", ())) for name in text.split(",")]
        record = run_compare(
            texts(sources, "sources"),
            measurement,
            methods=[name for name in methods if name],
            out=folder,
            progress=listener,
            team=team,
            **rest,
        )
        if team is not None:
            team.result = record
        return Compared.of(record, folder=folder)
