"""What is measured and how: one value for every command that measures, checked when it is made."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any

from hfcart.errors import UsageError
from hfcart.names import dtype
from hfcart.quoting import quoted
from hfcart.records.check import MAX_SAMPLE_SEED, PARTS, PRECISIONS

if TYPE_CHECKING:  # the command line takes its defaults from here: nothing heavy is imported for a `--help`
    from collections.abc import Mapping, Sequence

    import torch

    from hfcart.progress import Progress
    from hfcart.system.device import Machine
    from hfcart.tasks.data import Part, Split
    from hfcart.tasks.task_cards import TaskCard

REFERENCES = ("none", "published", "measured")


@dataclass(frozen=True)
class Measurement:
    """Which images a tower is scored on, bound to which base, beside what, and how that is computed.

    Attributes:
        tasks: what to measure, in this order.
        part: which images: the test split, or the validation or the train part of the train split.
        limit: score a sample of so many images a task, at least 1, drawn with `seed`; None for all.
        seed: of that sample, 0 to 2⁶⁴ − 1.
        base: the CLIP model with the text tower; None to find it by what the towers say of themselves.
        references: what to compare with: "published" figures of the task cards, or what is "measured" on the same
            images for the base, for the plain average and for each task's own tower, if the tower is a merge.
        adapters: of a merge that has an adapter for a task, measure it with that adapter, too.
        streaming: read the images over the network; False keeps each split in the cache.
        batch_size: images a forward pass at most, at least 1; changes no number. Default: 16 on a CPU, 256 elsewhere.
        workers: threads, at least 1; changes no number. Default: one a core, at most eight, shared among the
            processes of a machine.
        precision: float32, bfloat16, or auto: bfloat16 where the device computes with it.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: a value that nothing can be measured with; it names the option.
    """

    tasks: Sequence[TaskCard]
    _: KW_ONLY
    part: Part = "test"
    limit: int | None = None
    seed: int = 0
    base: str | None = None
    references: str = "published"
    adapters: bool = True
    streaming: bool = True
    batch_size: int | None = None
    workers: int | None = None
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what could not be measured."""
        object.__setattr__(self, "precision", dtype(self.precision))
        known = {"references": REFERENCES, "precision": ("auto", *PRECISIONS), "part": PARTS}
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise UsageError(f"--{name} is {quoted(value)}, expected one of {', '.join(values)}.")
        for name in ("limit", "batch_size", "workers"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {number}, expected at least 1.")
        if not 0 <= self.seed < MAX_SAMPLE_SEED:
            raise UsageError(f"--seed is {self.seed}, expected 0 to {MAX_SAMPLE_SEED - 1}.")

    def split(self, task: TaskCard, progress: Progress) -> Split:
        """The images of one of the tasks, pinned. Raises as `open_split` does."""
        from hfcart.tasks.data import open_split

        return open_split(
            task, self.part, limit=self.limit, seed=self.seed, streaming=self.streaming, progress=progress
        )

    def splits(self, progress: Progress) -> list[Split]:
        """Those of all, opened at once: a task that cannot be read is told before the work."""
        return [self.split(task, progress) for task in self.tasks]

    def machine(self, device: torch.device | None = None) -> Machine:
        """Where and how it is computed here; `device` if that is decided already."""
        from hfcart.system.device import Machine, choose_device

        where = device or choose_device(self.device)
        return Machine.on(where, self.precision, self.workers, self.batch_size)


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that are a Measurement's fields, and the others."""
    own = {each.name for each in fields(Measurement)}
    others = {name: value for name, value in options.items() if name not in own}
    return {name: value for name, value in options.items() if name in own}, others
