"""What was made of a group, cast once, put into its place and noted in the journal.

The journal has one line for each group whose bytes are in place, with their digests, and one for what was measured of
whole towers before the first group. A resumed run believes the digests, not the lines.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from hfcart.clip.tensor_names import Group
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.engine.reading import TORCH_DTYPES, all_finite, bytes_of
from hfcart.errors import NonFiniteError
from hfcart.system.journal import Line
from hfcart.system.tensor_files import TensorFiles
from hfcart.system.work_folder import SharedJournal, WorkFolder


class GroupWriter:
    """Writes the groups of a plan, and knows which are written. Several threads may, each group by one of them.

    Attributes:
        done: group's key -> its line, earlier runs included.
        own: those of this run and this process.
        facts: what an earlier run measured of the whole towers; None if none did.
    """

    def __init__(self, plan: Plan, folder: WorkFolder | SharedJournal, tensors: TensorFiles) -> None:
        """Read what an earlier run wrote, and prove it; write nothing yet.

        Args:
            plan: whose groups these are.
            folder: begun; its journal is this object's alone.
            tensors: with a slot for everything that will be written.
        """
        self._plan, self._folder, self._tensors = plan, folder, tensors
        self._lock = threading.Lock()
        self.own: dict[str, Line] = {}
        self.done: dict[str, Line] = {
            line["group"]: line for line in folder.lines if tensors.hold(line.get("sha256", {}))
        }
        # They follow from what the fingerprint covers: nothing else need prove them.
        self.facts: dict[str, Any] | None = next((line["fit"] for line in folder.lines if "fit" in line), None)

    def to_do(self) -> tuple[list[Group], list[Group]]:
        """The groups that are not written yet, and those that are; in output order."""
        left = [group for group in self._plan.groups if group.key not in self.done]
        return left, [group for group in self._plan.groups if group.key in self.done]

    def write(self, group: Group, tensor: torch.Tensor, prefix: str = "") -> dict[str, str]:
        """Write what was made of a group, cast once, into its tensors' slots, `prefix` + name. Returns their sha256."""
        result = tensor.to("cpu", TORCH_DTYPES[self._plan.dtype])
        names = group.names
        if len(names) == 1:  # of any shape, the logit scale has none
            parts = [result]
        else:
            parts = list(torch.split(result, [self._plan.shapes[name][0] for name in names]))
        digests = {}
        for name, part in zip(names, parts, strict=True):
            if not all_finite(part):
                what = f"{name} of the base" if group.copied else f"The merged {name}"
                raise NonFiniteError(
                    f"{what} has values beyond what {TORCH_NAME[self._plan.dtype]} holds.",
                    hint="Give --dtype float32" + ("." if group.copied else ", or a smaller --scale."),
                )
            stored = part.T if self._tensors.is_transposed(prefix + name) else part
            digests[prefix + name] = self._tensors.write(prefix + name, bytes_of(stored.contiguous()))
        return digests

    def write_whole(self, name: str, tensor: torch.Tensor) -> dict[str, str]:
        """Write a tensor, of the slot's dtype, into the slot of that name. Returns its sha256, by name."""
        return {name: self._tensors.write(name, bytes_of(tensor.cpu().contiguous()))}

    def note(self, line: Line) -> None:
        """Note a group as done: `line` names it under "group", and what was written for it under "sha256"."""
        with self._lock:
            self._folder.note(line)
            self.done[line["group"]] = self.own[line["group"]] = line

    def note_facts(self, facts: dict[str, Any]) -> None:
        """Note what was measured of the whole towers, for a later run."""
        self._folder.note({"fit": facts})
        self.facts = facts
