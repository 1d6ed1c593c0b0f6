"""A vision tower as a model that runs: a repo or folder, pinned, checked, its weights read in any of their forms."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_names import PROJECTION
from hfcart.errors import NonFiniteError, NotATowerError
from hfcart.formats.safetensors_file import TensorSpec
from hfcart.progress import Progress, Within
from hfcart.records import Architecture, SourceRecord
from hfcart.sources.full_clip import is_whole
from hfcart.sources.headers import read_headers
from hfcart.sources.one_architecture import FLOATS, check_alike, describe
from hfcart.sources.places import pin
from hfcart.sources.preprocessor import read_preprocessor
from hfcart.sources.stores import Store
from hfcart.sources.towers import Ref, Tower, fetch_all, with_bases

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedTower:
    """A vision tower in memory.

    Attributes:
        label: `user/name`, or a folder's base name.
        source: its pin and the digests of its weights.
        store: where its other files are.
        architecture: what its config.json says.
        model: the tower, float32 on the CPU, in eval mode.
        preprocessor: its image preprocessing, None if it states none.
        projection: a visual projection of its own (`dim width`), None if it has none.
        is_clip: whether it lies inside a whole CLIPModel, text tower and all.
        base: the tower that it is an adapter of, closed; None for a whole tower.
    """

    label: str
    source: SourceRecord
    store: Store
    architecture: Architecture
    model: CLIPVisionModel
    preprocessor: dict[str, Any] | None
    projection: torch.Tensor | None
    is_clip: bool
    base: Tower | None = None


@contextmanager
def opened(ref: Ref, progress: Progress, given: str | None = None) -> Iterator[Tower]:
    """A source pinned, with its headers read and its weights ready to be read.

    Args:
        ref: a Hub repo (`user/name`, `user/name@revision`) or a folder, read before or not.
        progress: told of each stage.
        given: the base, if the user gave one, for an adapter that names none.
    """
    progress.step(f"Loading {ref}")
    progress = Within(progress)
    with tempfile.TemporaryDirectory() as converted:
        tower = pin(ref, progress, given)
        try:
            read_headers([tower], Path(converted), progress)
            describe([tower])
            fetch_all([tower], progress, stream=False)
            yield tower
        finally:
            for each in with_bases([tower]):
                each.close()


def load_tower(ref: Ref, progress: Progress, given: str | None = None) -> LoadedTower:
    """Load a vision tower, whichever form it has, as a CLIPVisionModel; the arguments are those of `opened`.

    Raises:
        SourceError: it is gone, no CLIP tower, damaged, holds NaN or Inf, or states an image preprocessing that
            cannot be followed.
    """
    with opened(ref, progress, given) as tower:
        own = tower.tensors.get(PROJECTION)
        projection = read_tensor(tower, own) if own and own.dtype in FLOATS else None
        architecture = check_alike([tower], None, projection=False)
        preprocessor = read_preprocessor(
            tower.describing, architecture.image_size
        )  # refused before the weights are read
        return LoadedTower(
            label=tower.label,
            source=tower.source,
            store=tower.store,
            architecture=architecture,
            model=running(tower),
            preprocessor=preprocessor,
            projection=projection,
            is_clip=is_clip(tower),
            base=tower.base,
        )


def is_clip(tower: Tower) -> bool:
    """Whether a tower, its headers read, lies inside a whole CLIPModel."""
    return tower.base is None and is_whole(tower)


def running(tower: Tower) -> CLIPVisionModel:
    """The tower of an opened source as a model: float32, on the CPU, in eval mode. Raises as `load_tower` does."""
    from hfcart.clip.models import vision_model  # transformers takes seconds to import: a wrong name is refused before

    names = expected_shapes(tower.architecture, projection=False)
    return vision_model(tower.architecture, {name: read_tensor(tower, tower.tensors[name]) for name in names})


def read_tensor(tower: Tower, spec: TensorSpec) -> torch.Tensor:
    """One stored tensor of an opened source, in float32.

    Raises:
        NotATowerError: it holds no floats.
        NonFiniteError: it holds NaN or Inf.
    """
    if spec.dtype not in FLOATS:
        raise NotATowerError(f"{tower.label}: tensor {spec.name[:120]} is {spec.dtype}, expected F32, F16 or BF16.")
    stored = torch.empty(spec.shape, dtype=_DTYPES[spec.dtype])
    if stored.numel():
        flat: Any = stored.reshape(-1).view(torch.uint8).numpy()
        tower.read_stored(spec, memoryview(flat))
    if not bool(torch.isfinite(stored).all()):
        raise NonFiniteError(
            f"{tower.label}: tensor {spec.name[:120]} holds NaN or Inf.",
            hint="Name an earlier revision of it: user/name@revision.",
        )
    return stored.float()
