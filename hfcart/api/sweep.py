"""`hfcart.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hfcart.api._calling import calling, names_of, plain, text_of, texts
from hfcart.api.options import Names, StrPath, SweepOptions
from hfcart.system.processes import together

if TYPE_CHECKING:
    from hfcart.api.results import Swept
    from hfcart.progress import Progress


def sweep(
    sources: Sequence[StrPath],
    tasks: Names,
    *,
    progress: bool | Progress = False,
    **options: Unpack[SweepOptions],
) -> Swept:
    """Find the best rank and scale, as `hfcart sweep` does: one decomposition, every point measured. Prints nothing.

        sweep = hfcart.sweep(towers, "8", rank=[0.04, 0.08, 0.16], scale=[1, 1.5, 2])
        merged = hfcart.merge(towers, **sweep.setting)

    With `adapters=True` each task is measured through its own tower's adapter, at every rank.

    Args:
        sources: Hub repos and local folders, as for `hfcart.merge`.
        tasks: what is measured, as for `hfcart.evaluate`.
        progress: True draws in a terminal or a notebook, a `Progress` of your own is told of every stage; False prints
            nothing, and warnings are Python's (HfcartWarning).

    Options:
        Basics:
            method (str): cart, or another with a scale, such as tsv_m. Default: cart.
            rank (numbers): Such as 0.02,8%,1.0 or 2%:50%:10. Default: 2, 4, 8, 16, 32, 100 %.
            scale (numbers): Such as 1,1.5,2 or 0.5:2.5:9. Default: the method's usual ones.
            base (path): The CLIP model with the text tower. Default: by cards or shape.
            out (path): Where to write. Default: sweep.
        What is merged:
            reverse (bool): Keep the lowest singular directions in place of the top.
            adapters (bool): Measure the average with an adapter for each task, not merges.
            adapters_carry ("all" | "matrices"): What adapters hold. Default: all.
            qkv ("split" | "fused"): Merge q, k and v as three matrices, or as one. Default: split.
        Output:
            overwrite (bool): Replace an earlier sweep.
        Images:
            part ("validation" | "test" | "train"): Which images. Default: validation.
            limit (int): Score a seeded sample of so many images a task.
            streaming (bool): Read images over the network; False keeps them in the cache. Default: True.
        Machine:
            device (str): Where to compute. Default: auto.
            precision ("auto" | "float32" | "bfloat16"): Of the forward pass. Default: auto.
            workers (int): Worker threads. Default: one a core, at most 8.
        Parameters of single methods:
            threshold (float or numbers): consensus: as for `hfcart.merge`, at every point.
            agree (int): consensus: as for `hfcart.merge`, at every point.

    Returns:
        Every point and the best (what sweep.json holds), with the folder; `setting` is the best as keywords.

    Raises:
        hfcart.errors.HfcartError: each kind of failure has its class; the message says what is wrong, and a hint, which
            a traceback shows, what to do next.
        hfcart.errors.KeywordError: a keyword that there is not (a TypeError, too).
    """
    with calling("sweep", options, SweepOptions.__annotations__, progress) as listener, together() as team:
        from hfcart.api.results import Swept

        folder = Path(text_of(options.get("out") or "sweep"))
        if team is not None and not team.first:
            return Swept.of(team.follow(), folder=folder)
        from hfcart.commands.sweep import run_sweep
        from hfcart.tasks.task_cards import read_tasks
        from hfcart.zero_shot.measurement import Measurement, split_options

        how, rest = split_options({"part": "validation", **plain(options)})
        adapters = names_of(tasks) if how.pop("adapters", False) else ()  # of a Measurement they are others
        measurement = Measurement([] if adapters else read_tasks(names_of(tasks)), **how)
        rest.pop("out", None)
        record = run_sweep(
            texts(sources, "sources"),
            measurement,
            ranks=_numbers(rest.pop("rank", None), ratios=True),
            scales=_numbers(rest.pop("scale", None), ratios=False),
            settings={name: rest.pop(name) for name in ("threshold", "agree") if name in rest},
            adapters=adapters,
            out=folder,
            progress=listener,
            team=team,
            **rest,
        )
        if team is not None:
            team.result = record
        return Swept.of(record, folder=folder)


def _numbers(given: Any, *, ratios: bool) -> list[int | float] | None:  # noqa: ANN401 (a text, a number, or several)
    """The grid that was asked for; None for the usual one."""
    from hfcart.errors import UsageError
    from hfcart.recipes.grid import numbers

    if isinstance(given, str):
        try:
            return numbers(given, ratios=ratios)
        except ValueError as error:
            raise UsageError(f"{'rank' if ratios else 'scale'}: {error}.") from None
    return None if given is None else [given] if isinstance(given, int | float) else list(given)
