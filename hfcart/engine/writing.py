"""What was made of a group, cast once, put into its place and noted in the journal."""

from __future__ import annotations

import threading
from typing import Any

import torch

from hfcart.clip.tensor_names import Group
from hfcart.engine.plan import TORCH_NAME, Plan
from hfcart.engine.reading import TORCH_DTYPES, all_finite, bytes_of
from hfcart.errors import NonFiniteError
from hfcart.system.work_folder import PartialFolder


class GroupWriter:
    """Writes the groups of a plan into an open work folder. Several threads may, each group by one of them."""

    def __init__(self, plan: Plan, folder: PartialFolder) -> None:
        """Write nothing yet.

        Args:
            plan: whose groups these are.
            folder: opened, with a slot for everything that will be written.
        """
        self._plan = plan
        self._folder = folder
        self._lock = threading.Lock()

    def write(self, group: Group, tensor: torch.Tensor, prefix: str = "") -> dict[str, str]:
        """Write what was made of a group, cast once, into its tensors' slots, `prefix` + name. Returns their sha256."""
        result = tensor.to("cpu", TORCH_DTYPES[self._plan.dtype])
        names = group.names
        if len(names) == 1:  # of any shape, the logit scale has none
            parts = [result]
        else:
            parts = list(torch.split(result, [self._plan.shapes[name][0] for name in names]))
        digests = {}
        for name, part in zip(names, map(torch.Tensor.contiguous, parts), strict=True):
            if not all_finite(part):
                what = f"{name} of the base" if group.copied else f"The merged {name}"
                raise NonFiniteError(
                    f"{what} has values beyond what {TORCH_NAME[self._plan.dtype]} holds.",
                    hint="Give --dtype float32" + ("." if group.copied else ", or a smaller --scale."),
                )
            digests[prefix + name] = self._folder.write(prefix + name, bytes_of(part))
        return digests

    def write_whole(self, name: str, tensor: torch.Tensor) -> dict[str, str]:
        """Write a float32 tensor into the slot of that name. Returns its sha256, by name."""
        return {name: self._folder.write(name, bytes_of(tensor.cpu().contiguous()))}

    def note(self, line: dict[str, Any]) -> None:
        """Note a group as done: `line` names it under "group", and what was written for it under "sha256"."""
        with self._lock:
            self._folder.record(line)
            self._folder.done[line["group"]] = line
