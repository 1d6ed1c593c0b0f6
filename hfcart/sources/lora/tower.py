"""A tower that is an adapter of another: each tensor is read of the base, and what the adapter adds is added to it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfcart.clip.tensor_names import PROJECTION
from hfcart.formats.safetensors_file import DTYPE_BYTES, TensorSpec
from hfcart.quoting import plural
from hfcart.records import FileRecord
from hfcart.sources.lora.config import ADAPTER, LoraConfig
from hfcart.sources.lora.updates import Update, find_updates
from hfcart.sources.towers import Tower

if TYPE_CHECKING:
    from torch import Tensor

_RECENT = 3  # tensors: q, k and v may be one group


@dataclass
class AdaptedTower(Tower):
    """An adapter with its base, which `Tower.base` is. Its tensors are the base's, and an `Update` for each it changes.

    Attributes:
        config: the adapter's.
    """

    config: LoraConfig | None = None

    @property
    def under(self) -> Tower:
        """The base."""
        assert self.base is not None
        return self.base

    def take_up(self) -> str:
        """Fill `tensors`, once its own headers and its base's are read.

        Returns:
            What it is and what of it is left out, the end of a sentence that begins with its label.

        Raises:
            SourceError: it does not fit its base, or changes nothing of a vision tower.
        """
        assert self.config is not None
        found = find_updates(self.stored, self.config, self.under.tensors, self.label, self.under.label)
        self.tensors = {**self.under.tensors, **found.tensors}
        self.projection = self.tensors.get(PROJECTION)
        commit = self.under.store.commit
        ranks = f" (rank {' and '.join(map(str, found.ranks))})" if 0 < len(found.ranks) <= 3 else ""
        said = f"is a LoRA adapter of {self.under.label}" + (f" at {commit[:12]}" if commit else "")
        said += f": {plural(found.matrices, 'product')} B A{ranks}"
        said += f" and {plural(kept, 'tensor')} of its own" if (kept := len(found.tensors) - found.matrices) else ""
        return said + (f"; {' and '.join(found.left)} in it are left out" if found.left else "")

    def read_stored(self, spec: TensorSpec, buffer: memoryview) -> None:
        """As `Tower` does; of an update its float32 values, W_0 + scale · B A, or what the adapter has in its place."""
        if not isinstance(spec, Update):
            if spec.file in self.under.files:
                self.under.read_stored(spec, buffer)
            else:
                buffer[:] = self._streamed(spec)
            return
        import torch  # as in hfcart.sources.towers

        out: Tensor = torch.frombuffer(buffer, dtype=torch.float32).reshape(spec.shape)
        begun = self._tensor(spec.saved, own=True) if spec.saved else self._tensor(spec.under, own=False)
        if spec.up is not None:
            down = self._tensor(spec.down, own=True) if spec.down else None
            begun = spec.added(down, self._tensor(spec.up, own=True)).add_(begun)
        out.copy_(begun)

    def _tensor(self, spec: TensorSpec | None, *, own: bool) -> Tensor:
        """A stored tensor of the adapter's file, or of the base."""
        import torch

        assert spec is not None
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[spec.dtype]
        if not own and spec.file not in self.under.files:
            data = self._streamed(spec)
        else:
            data = bytearray(math.prod(spec.shape) * DTYPE_BYTES[spec.dtype])
            read = super().read_stored if own else self.under.read_stored
            read(spec, memoryview(data))
        found: Tensor = torch.frombuffer(data, dtype=dtype).reshape(spec.shape)
        return found

    def _streamed(self, spec: TensorSpec) -> bytearray:
        """What comes over the network of the base: the next adapter of the same base needs it in this thread, too."""
        recent: dict[TensorSpec, bytearray] = self.under.recent.__dict__.setdefault("tensors", {})
        if spec not in recent:
            while len(recent) >= _RECENT:
                del recent[next(iter(recent))]
            recent[spec] = bytearray(math.prod(spec.shape) * DTYPE_BYTES[spec.dtype])
            self.under.read_stored(spec, memoryview(recent[spec]))
        return recent[spec]

    def sealed(self, name: str) -> str:
        """As `Tower` does: its own files hold nothing but what is read."""
        return self.files[name].sealed({(spec.start, spec.end) for spec in self.stored if spec.file == name})

    def make_record(self, files: list[FileRecord]) -> None:
        """As `Tower` does; the config, which has the scale in it, counts among the weight files."""
        super().make_record([self._config_file(), *files])

    def content(self) -> list[str]:
        """As `Tower` does."""
        return [self._config_file().sha256, *super().content()]

    def _config_file(self) -> FileRecord:
        data = self.store.small(ADAPTER) or b""
        return FileRecord(ADAPTER, len(data), hashlib.sha256(data).hexdigest())
