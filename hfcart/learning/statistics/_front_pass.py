"""One pass of every task's images through the merged front: block by block, front to back.

The images stand before a block as the merged embeddings and the merged blocks before have made them. Each tower's own
block takes its task's, and the Gram matrices of what its layers take are written. Then the block is merged with them,
as the merge itself is going to do it, and the images go through it. In memory are one block, and a few batches of
images; all of them lie in a file without a name.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hfcart.clip.architecture import expected_shapes
from hfcart.clip.tensor_names import PREFIX, Group
from hfcart.engine.loop import Workers, workers
from hfcart.engine.merging import GroupRules
from hfcart.engine.plan import Plan
from hfcart.engine.reading import GroupReader, bytes_of
from hfcart.learning.statistics import _gram
from hfcart.learning.statistics._front import FIRST, FrontGrams, root
from hfcart.learning.statistics._images import AT_ONCE, batches, broken_at, label_of, nothing_of
from hfcart.learning.statistics._store import room_in_cache, write
from hfcart.progress import Progress
from hfcart.system.disk import reserve
from hfcart.tasks.data import Split
from hfcart.zero_shot.loaded_tower import read_tensor

if TYPE_CHECKING:
    from transformers import CLIPVisionModel


class FrontPass:
    """What all blocks share."""

    def __init__(
        self,
        plan: Plan,
        grams: FrontGrams,
        splits: Sequence[Split],
        fields: Sequence[dict[str, Any]],
        device: torch.device,
        number: int,
        progress: Progress,
    ) -> None:
        """Run nothing yet.

        Args:
            plan: fetched, in canonical order.
            grams: where the Gram matrices are written, and read from.
            splits: each tower's images.
            fields: each tower's image preprocessing.
            device: where the towers run.
            number: of worker threads; does not change a bit.
            progress: told of each stage.
        """
        self._plan, self._grams, self._splits, self._fields = plan, grams, splits, fields
        self._device, self._number, self._progress = device, number, progress
        self._reader = GroupReader(plan, device)
        self._rules = GroupRules(plan.informed(grams), self._reader, device)
        side = plan.architecture.image_size // plan.architecture.patch_size
        self._tokens = side**2 + 1
        self._size = max(1, _gram.TOKENS // self._tokens)  # images of a batch
        self._places = range(len(plan.towers))

    def gather(self, missing: Collection[tuple[int, int]]) -> None:
        """Write the Gram matrices that are missing, as (block, place of the tower); go no further than their last."""
        last = max(block for block, _ in missing)
        threads = ThreadPoolExecutor(self._number, "gather", initializer=torch.set_num_threads, initargs=(1,))
        with (
            self._states() as states,
            workers(self._number, self._device, self._reader, self._progress) as merging,
            torch.no_grad(),
        ):
            try:
                model = self._with_embeddings(merging)
                undecodable = [self._embed(model, states, threads, place) for place in self._places]
                for block in range(last + 1):
                    if places := [place for place in self._places if (block, place) in missing]:
                        self._gather(model, states, threads, block, places, undecodable)
                    if block < last:
                        _load(model, self._merged(merging, f"Block {block + 1}", root(block)), block)
                        self._forward(model, states, threads, block)
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _states(self) -> Iterator[HiddenStates]:
        """Room on the disk for all images. Raises OutputError."""
        most, width = max(map(len, self._splits)), self._plan.architecture.hidden_size
        shape, tasks = (self._tokens, width), len(self._places)
        size = 4 * tasks * most * self._tokens * width
        with room_in_cache("What images are before a block", self._grams.folder, size):
            file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._grams.folder))  # noqa: SIM115 (closed below)
            reserve(file.fileno(), size)
        with file:
            yield HiddenStates(file, most, shape, tasks)

    def _merged(self, merging: Workers, label: str, *roots: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, merged as the merge itself does it; float32, on the CPU."""
        groups = [group for group in self._plan.groups if not group.copied and group.key.startswith(roots)]
        found: dict[str, Tensor] = {}

        def work(group: Group) -> None:
            with self._reader.held(group) as held:
                whole = merging.drive(self._rules.merged, group, held, {})[0].tensor.float()
            parts = torch.split(whole, [self._plan.shapes[name][0] for name in group.names])
            found.update(zip(group.names, parts, strict=True))

        merging.each(f"{label}, merging", groups, [], work)
        self._progress.finish()
        return found

    def _with_embeddings(self, merging: Workers) -> CLIPVisionModel:
        """A tower of one block, with the merged embeddings and the norm before the blocks."""
        from hfcart.clip.models import vision_model  # transformers takes seconds to import

        one = dataclasses.replace(self._plan.architecture, num_hidden_layers=1)
        empty = {name: torch.zeros(shape) for name, shape in expected_shapes(one, projection=False).items()}
        merged = self._merged(merging, "Embeddings", f"{PREFIX}embeddings.", f"{PREFIX}pre_layrnorm.")
        model = vision_model(one, empty | merged)
        torch.nn.Module.to(model, self._device)
        return model

    def _embed(self, model: CLIPVisionModel, states: HiddenStates, threads: ThreadPoolExecutor, place: int) -> int:
        """Put a task's images before the first block. Returns how many could not be decoded."""
        tower, split, undecodable = self._plan.towers[place], self._splits[place], 0

        def embedded(pixels: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = model.pre_layrnorm(model.embeddings(pixels))
            return out

        self._progress.start(label_of(self._plan, tower, split), len(split), "images")
        for some in batches(split, self._fields[place], self._size, self._device, threads):
            undecodable += some.undecodable
            for each in threads.map(embedded, some.pixels):
                states.add(place, each)
            self._progress.advance(some.images + some.undecodable)
        self._progress.finish()
        if not states.images[place]:
            raise nothing_of(tower, split, undecodable)
        return undecodable

    def _gather(
        self,
        model: CLIPVisionModel,
        states: HiddenStates,
        threads: ThreadPoolExecutor,
        block: int,
        places: Sequence[int],
        undecodable: Sequence[int],
    ) -> None:
        """Run the own blocks of the towers in these places on their images, and write the Gram matrices."""
        names = [name for name in self._plan.shapes if name.startswith(root(block))]
        self._progress.start(
            f"{self._named(block)}, every tower's own", sum(states.images[i] for i in places), "images"
        )
        for place in places:
            tower = self._plan.towers[place]
            _load(model, {name: read_tensor(tower, tower.tensors[name]) for name in names}, block)
            totals = {name: torch.zeros(shape, device=self._device) for name, shape in self._grams.shapes.items()}
            with _gram.grams(model, totals, threads, run=lambda some: _run(model, some)) as add:
                for _, some in states.read(place, self._size):
                    add([each.to(self._device) for each in some], None)
                    self._progress.advance(sum(map(len, some)))
            for name, total in totals.items():
                if not bool(torch.isfinite(total).all()):
                    raise broken_at(tower, name.replace(FIRST, root(block)))
            own = {name: total.cpu() for name, total in totals.items()}
            images, lost = states.images[place], undecodable[place]
            write(self._grams.path(block, place), own, images=images, undecodable=lost, norm=0.0)
        self._progress.finish()

    def _forward(self, model: CLIPVisionModel, states: HiddenStates, threads: ThreadPoolExecutor, block: int) -> None:
        """Send every task's images through the merged block."""
        self._progress.start(f"{self._named(block)}, merged", sum(states.images), "images")
        for place in self._places:
            for first, some in states.read(place, self._size):
                out = list(threads.map(lambda each: _run(model, each.to(self._device)).cpu(), some))
                states.write(place, first, torch.cat(out))
                self._progress.advance(sum(map(len, some)))
        self._progress.finish()

    def _named(self, block: int) -> str:
        return f"Block {block + 1} of {self._plan.architecture.num_hidden_layers}"


class HiddenStates:
    """What every task's images are before the next block, in a file: room for as many of each task as it may have.

    Attributes:
        images: how many each task has.
    """

    def __init__(self, file: BinaryIO, most: int, shape: tuple[int, int], tasks: int) -> None:
        """Write nothing yet.

        Args:
            file: open for reading and writing.
            most: images of a task.
            shape: tokens × width, of one image.
            tasks: their number.
        """
        self.images = [0] * tasks
        self._file, self._most, self._shape = file, most, shape

    def add(self, task: int, states: Float[Tensor, "b token width"]) -> None:
        """Put some images behind those that a task has. Raises OSError."""
        self.write(task, self.images[task], states)
        self.images[task] += len(states)

    def write(self, task: int, first: int, states: Float[Tensor, "b token width"]) -> None:
        """Put some of a task's images in place, from the one in place `first` on. Raises OSError."""
        self._seek(task, first)
        self._file.write(bytes_of(states.cpu().contiguous()))

    def read(self, task: int, size: int) -> Iterator[tuple[int, list[Float[Tensor, "b token width"]]]]:
        """A task's images in batches of `size`, AT_ONCE of them at a time, and the place of the first."""
        for first in range(0, self.images[task], AT_ONCE * size):
            some = torch.empty(min(AT_ONCE * size, self.images[task] - first), *self._shape)
            self._seek(task, first)
            cast(Any, self._file).readinto(bytes_of(some))
            yield first, list(torch.split(some, size))

    def _seek(self, task: int, image: int) -> None:
        tokens, width = self._shape
        self._file.seek(4 * tokens * width * (task * self._most + image))


def _load(model: CLIPVisionModel, tensors: Mapping[str, Tensor], block: int) -> None:
    """Put a block's weights, by the names that they have in their tower, into the only one of the model."""
    layer: Any = model.encoder.layers[0]
    layer.load_state_dict({name.removeprefix(root(block)): tensor for name, tensor in tensors.items()})


def _run(model: CLIPVisionModel, states: Float[Tensor, "b token width"]) -> Float[Tensor, "b token width"]:
    """Through the only block of the model."""
    with torch.no_grad():
        out: Tensor = model.encoder(inputs_embeds=states).last_hidden_state
    return out
