"""Zero-shot heads: class names and prompts through the text side of the CLIP model that a tower comes from.

A head fits one base. ViT-B/16's projection has the shape of ViT-B/32's and scores its towers at random, without an
error anywhere: so the base is found from what the tower says of itself, and held against it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hfcart.clip.architecture import differences
from hfcart.clip.tensor_names import PROJECTION
from hfcart.errors import MismatchError, SourceError, UsageError, VerifyError
from hfcart.progress import Progress, Within
from hfcart.recipes.finished_finetuning import read_any
from hfcart.records import Architecture, FinetuneRecord, MergeRecord, SourceRecord
from hfcart.records.file_names import MAX_RECORD, RECORD
from hfcart.sources.full_clip import read_base_parts
from hfcart.sources.lineage import base_by_record, unopenable
from hfcart.sources.preprocessor import clip_default, read_preprocessor
from hfcart.sources.stores import LocalStore, Store
from hfcart.sources.towers import Reopened, Tower, known_base
from hfcart.tasks.task_cards import TaskCard
from hfcart.zero_shot.loaded_tower import LoadedTower, is_clip, opened, read_tensor
from hfcart.zero_shot.prompts import encoder

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection

Head = Float[torch.Tensor, "classes dim"]
_PROMPTS_AT_ONCE = 256
_VERSION = 2  # of the numbers: raised when the same inputs would give others


@dataclass(frozen=True)
class Base:
    """The CLIP model that towers were fine-tuned from: what turns their features into scores.

    Attributes:
        label: `user/name`, or a folder's base name.
        ref: what opens it again at the same commit.
        source: its pin and the digests of its weights.
        architecture: of its vision tower.
        projection: visual_projection.weight, float32.
        logit_scale: what CLIP multiplies cosines by, about 100.
        preprocessor: its image preprocessing, CLIP's own if it states none.
        text_config: the checked config of its text tower.
        tokenizer: file name -> bytes.
    """

    label: str
    ref: str
    source: SourceRecord
    architecture: Architecture
    projection: Float[torch.Tensor, "dim width"]
    logit_scale: float
    preprocessor: dict[str, Any]
    text_config: dict[str, Any]
    tokenizer: dict[str, bytes]

    @property
    def key(self) -> str:
        """Its commit, or the digest of a local folder's weights: what its cached heads are kept under."""
        return self.source.commit or self.source.sha256

    @property
    def again(self) -> str | Reopened:
        """What opens it again, or nothing if it is no longer the same."""
        return self.ref if self.source.repo else Reopened(self.ref, self.source.sha256)


def open_base(ref: str | Reopened, progress: Progress) -> Base:
    """A CLIP model as a base: pinned and checked. Its weights are fetched whole: a part of a file proves nothing.

    Args:
        ref: a Hub repo (`user/name`, `user/name@revision`) or a folder that holds a whole CLIPModel.
        progress: told of each stage.

    Raises:
        SourceError: it is gone, holds a vision tower only, or is damaged.
    """
    with opened(ref, progress) as tower:
        return as_base(tower)


def as_base(tower: Tower) -> Base:
    """A CLIP model that is open already, its headers read, as a base. Raises as `open_base` does."""
    parts = read_base_parts(tower)
    size, store = tower.architecture.image_size, tower.store
    return Base(
        label=tower.label,
        ref=str(store.opened) if isinstance(store, LocalStore) else store.ref or "",
        source=tower.source,
        architecture=tower.architecture,
        projection=read_tensor(tower, parts.tensors[PROJECTION]),
        logit_scale=float(read_tensor(tower, parts.tensors["logit_scale"]).exp()),
        preprocessor=read_preprocessor(store, size) or clip_default(size),
        text_config={**parts.text_config, "projection_dim": tower.architecture.projection_dim},
        tokenizer=parts.tokenizer,
    )


def base_of(tower: LoadedTower, progress: Progress) -> str | Reopened:
    """The CLIP model that a tower says it comes from: as its record leads to, itself, its card's, else of its shape.

    Raises:
        UsageError: nothing tells, or those whom its record leads to disagree.
        VerifyError: its record cannot be read.
        HubError: its record cannot be followed.
    """
    of = tower.base or tower  # an adapter comes from where its base does
    record = _record_of(of)
    # Of a merge with --full-clip too: it holds a copy of the base's text tower, and is not the base.
    found = base_by_record(record, of.label, progress) if record is not None else None
    if found is not None and found.ref is not None:
        return found.ref
    if tower.is_clip or (tower.base and is_clip(tower.base)):
        source = of.source
        return source.ref or Reopened(_opened(of.store), source.sha256)
    if found is not None:
        raise unopenable(found)
    stated = of.source.facts.base_models
    if record is None and len(stated) == 1:
        return stated[0]
    known = known_base(tower.architecture)
    if known is None:
        raise UsageError(
            f"Neither the record nor the card nor the shape of {tower.label} tells which CLIP model it comes from.",
            hint="Give it: --base user/name",
        )
    return known


def _record_of(tower: LoadedTower | Tower) -> MergeRecord | FinetuneRecord | None:
    data = tower.store.small(RECORD, MAX_RECORD)
    try:
        return None if data is None else read_any(data, f"{tower.label}/{RECORD}")
    except VerifyError as error:
        error.hint = "Say yourself which CLIP model it comes from: --base user/name"
        raise


def _opened(store: Store) -> str:
    assert isinstance(store, LocalStore)  # every other has a ref
    return str(store.opened)


def check_base(tower: LoadedTower, base: Base, progress: Progress) -> None:
    """Hold a base against a tower: width, patch, layers and everything else that shapes its features.

    The projection's size is held against a projection of the tower's own: without one, what its config says of it
    (transformers' default, often) decides nothing.

    Raises:
        MismatchError: a row for every difference.
    """
    check_architecture(tower.label, tower.architecture, base, projection=tower.projection is not None)
    own = tower.projection
    if own is not None and not (own.shape == base.projection.shape and torch.allclose(own, base.projection, atol=1e-4)):
        progress.warn(
            f"{tower.label} holds a visual projection of its own, which is not that of {base.label}: "
            "the base's is used, as everywhere in this benchmark."
        )


def check_architecture(label: str, found: Architecture, base: Base, *, projection: bool = False) -> None:
    """Raise MismatchError, with a row for every difference, if towers of this architecture cannot come from a base."""
    rows = differences(found, base.architecture, projection=projection)
    if rows:
        raise MismatchError(
            f"{base.label} is not the CLIP model behind {label}: its head would score at random.",
            [(label, *row) for row in rows],
            hint="Give the right one: --base user/name",
        )


def make_head(base: Base, task: TaskCard, progress: Progress) -> Head:
    """One unit vector a class: every prompt's text embedding normalised, their mean normalised again.

    (Radford et al. 2021, section 3.1.4: an ensemble over the embedding space.) Kept on disk by the base's commit
    and what decides the head: prompts and class names.

    Args:
        base: opened.
        task: its class names and prompts, in label order.
        progress: told when a head has to be computed.

    Raises:
        SourceError: the base's text tower cannot be read.
    """
    path = _cached(base, task)
    head = _read(path, len(task.classnames), base.projection.shape[0])
    if head is None:
        progress.step(f"Computing the zero-shot head of {task.title} with {base.label}")
        head = _compute(base, task, Within(progress))
        _write(path, head)
    return head


def _cached(base: Base, task: TaskCard) -> Path:
    from hfcart import hub

    tokenizer = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(base.tokenizer.items())}
    decides = [_VERSION, base.key, base.source.sha256, base.text_config, tokenizer, task.templates, task.classnames]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return hub.assets("heads") / base.key / f"{task.id}-{digest[:32]}.safetensors"


def _read(path: Path, classes: int, dim: int) -> Head | None:
    try:
        with safe_open(path, "pt") as file:
            head: torch.Tensor = file.get_tensor("head")
    except (OSError, SafetensorError):
        return None
    unit = head.shape == (classes, dim) and bool(((head.norm(dim=1) - 1).abs() < 1e-3).all())
    return head if unit else None


def _write(path: Path, head: Head) -> None:
    from hfcart import hub

    hub.write_whole(path, save({"head": head}))


def _compute(base: Base, task: TaskCard, progress: Progress) -> Head:
    from hfcart.clip.models import text_features

    model = _text_model(base, progress)
    encode = encoder(base.label, base.tokenizer, base.text_config, progress)
    prompts = [prompt for label in range(len(task.classnames)) for prompt in task.prompts(label)]
    rows = []
    progress.start(f"{task.title}: prompts", len(prompts), "prompts")
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        some = prompts[start : start + _PROMPTS_AT_ONCE]
        rows.append(torch.nn.functional.normalize(text_features(model, encode(some)), dim=-1))
        progress.advance(len(some))
    progress.finish()
    means = torch.cat(rows).reshape(len(task.classnames), len(task.templates), -1).mean(dim=1)
    head = torch.nn.functional.normalize(means, dim=-1)
    if not bool(torch.isfinite(head).all()):
        raise SourceError(f"{base.label}: its text tower gives NaN or Inf for the prompts of {task.title}.")
    return head.clone()  # no inference tensor: fine-tuning takes gradients through it


def _text_model(base: Base, progress: Progress) -> CLIPTextModelWithProjection:
    from hfcart.clip.models import text_model

    with opened(base.again, progress) as tower:
        parts = read_base_parts(tower).tensors
        tensors = {name: read_tensor(tower, spec) for name, spec in parts.items() if name.startswith("text_")}
    return text_model(base.text_config, tensors)
