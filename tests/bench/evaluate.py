"""Images per second of `hfcart eval` against the plain loop, in one run: one CLIPProcessor call an image, batch 128.

    python tests/bench/evaluate.py [--images 128] [--width 500] [--height 375] [--rounds 5] [--device cpu]

Both score the same JPEG files (500 x 375 by default) with the same ViT-B/32 and head on the same device; the
floor is the forward pass alone, over pixels that are ready. Each way runs in a process of its own, as a user's would:
what one asks of the allocator is not the other's gain. The ways take turns, and a ratio is the median of the rounds'
ratios: whatever else the machine does meets all of them. Also printed: how much a cosine moves with the batch it is
computed in, and how many predictions bfloat16 changes. bfloat16 is timed where the CPU has instructions for it:
elsewhere hfcart does not use it, unless asked. On a GPU TF32 is off, in the plain loop too.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from measuring import in_turns, median_ratio, options, say_ratio, say_table
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging

from hfcart.clip.forward import pooled
from hfcart.clip.images import decode
from hfcart.clip.pixels import normalised, to_pixels
from hfcart.progress import Progress
from hfcart.sources.preprocessor import clip_default
from hfcart.system.device import Machine, batch_for, one_blas_thread, precision_for
from hfcart.system.threads import default_workers
from hfcart.tasks.data import Example
from hfcart.zero_shot.scoring import TOO_CLOSE, Scorer, score

CLASSES = 10
FIELDS = clip_default(224)

bench: Bench


class Pictures:
    """A split whose images are in memory."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        rng = np.random.default_rng(0)
        self.files = [self._jpeg(rng, size) for _ in range(count)]

    @staticmethod
    def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(self.files)

    def examples(self, shard: int = 0, shards: int = 1, chunk: int = 32) -> Iterator[Example]:
        for i, file in enumerate(self.files):
            yield Example(i, file, i % CLASSES)


def plain(files: list[bytes], model: CLIPVisionModel, projection: torch.Tensor, head: torch.Tensor) -> list[int]:
    """What a script does: a processor call an image, batches of 128, torch's default threads."""
    processor = CLIPImageProcessor()
    projection, head = projection.to(model.device), head.to(model.device)
    out: list[int] = []
    with torch.no_grad():
        for start in range(0, len(files), 128):
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files[start : start + 128]]
            pixels = torch.cat([processor(images=image, return_tensors="pt")["pixel_values"] for image in images])
            found = model(pixel_values=pixels.to(model.device)).pooler_output
            features = torch.nn.functional.normalize(found @ projection.T, dim=-1)
            out += (features @ head.T).argmax(dim=-1).tolist()
    return out


def floor(pixels: torch.Tensor, forward: Callable[[torch.Tensor], object], bfloat16: bool = False) -> None:
    """A forward pass alone, in the batches and threads that hfcart uses; on a GPU the pixels are there."""
    from concurrent.futures import ThreadPoolExecutor

    def work(batch: torch.Tensor) -> None:
        with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, enabled=bfloat16):
            forward(batch)

    with (
        one_blas_thread(),
        ThreadPoolExecutor(default_workers(), initializer=torch.set_num_threads, initargs=(1,)) as p,
    ):
        list(p.map(work, pixels.split(batch_for(pixels.device))))
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)


@torch.inference_mode()
def spread_head(model: CLIPVisionModel, projection: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Classes as far apart as a trained CLIP's: an untrained tower maps all images to nearly one point."""
    features = torch.nn.functional.normalize(model(pixel_values=pixels[:64]).pooler_output @ projection.T, dim=-1)
    centred = features - features.mean(dim=0)
    directions = torch.randn(CLASSES, len(centred)) @ torch.nn.functional.normalize(centred, dim=-1)
    return torch.nn.functional.normalize(directions, dim=-1)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


class Bench:
    """The same model, images and head in each process, and the ways to run them."""

    def __init__(self, count: int, width: int, height: int, device: str) -> None:
        logging.set_verbosity_error()
        torch.manual_seed(0)
        torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.model = CLIPVisionModel(CLIPVisionConfig(patch_size=32)).eval()
        self.projection = torch.randn(512, 768) / 768**0.5
        self.split = Pictures(count, (width, height))
        pixels = torch.stack([to_pixels(decode(file), FIELDS) for file in self.split.files])
        self.ready = normalised(pixels, FIELDS)
        self.head = spread_head(self.model, self.projection, self.ready)
        self.model.to(self.device)
        self.there = self.ready.to(self.device)

    def hfcart(self, precision: str) -> None:
        machine = Machine.on(self.device, precision)
        scorer = Scorer(self.model, self.projection, FIELDS, machine)
        score(self.split, [scorer], self.head, machine, progress=Progress())  # type: ignore[arg-type]

    def ways(self) -> dict[str, Callable[[], object]]:
        model, ready = self.model, self.there
        ways: dict[str, Callable[[], object]] = {
            "plain loop, float32, batch 128": lambda: plain(self.split.files, model, self.projection, self.head),
            "hfcart, float32": lambda: self.hfcart("float32"),
            "its forward alone": lambda: floor(ready, lambda batch: pooled(model, batch)),
            "the model's own forward alone": lambda: floor(ready, lambda batch: model(pixel_values=batch)),
        }
        if precision_for("auto", self.device) == "bfloat16":
            ways["hfcart, bfloat16"] = lambda: self.hfcart("bfloat16")
            ways["its forward alone, bfloat16"] = lambda: floor(ready, lambda batch: pooled(model, batch), True)
        return ways


def begin(count: int, width: int, height: int, device: str) -> None:
    """Make what a process needs, once."""
    global bench
    bench = Bench(count, width, height, device)


def once(name: str) -> tuple[float, float]:
    """One way, once, in this process."""
    return timed(bench.ways()[name])


def main() -> None:
    parser = options(__doc__)
    for name, default in (("images", 128), ("width", 500), ("height", 375), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    size = asked.images, asked.width, asked.height, asked.device
    begin(*size)
    with contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(spawn.Pool(1, begin, size)) for name in bench.ways()}
        times = in_turns(
            {name: lambda n=name, p=pool: p.apply(once, (n,)) for name, pool in pools.items()}, asked.rounds
        )
    plain_name, own_name = list(times)[:2]

    def faster(name: str, of: int) -> float:
        return median_ratio([one[of] for one in times[plain_name]], [one[of] for one in times[name]])

    there = f"{default_workers()} workers" + (" and a GPU" if asked.device != "cpu" else "")
    print(
        f"{size[0]} JPEG files of {size[1]} × {size[2]}, ViT-B/32, {CLASSES} classes, {there}; rounds: {asked.rounds}."
    )
    say_ratio(faster(own_name, 0), f"images a second: {own_name} / plain loop")
    say_ratio(faster(own_name, 1), f"images a second of CPU: {own_name} / plain loop")
    rows = []
    for name, each in times.items():
        rates = [size[0] / statistics.median(column) for column in zip(*each, strict=True)]
        rows.append([name, *(f"{x}" for i in (0, 1) for x in (f"{rates[i]:.1f}", f"{faster(name, i):.2f}×"))])
    say_table(("", "images/s", "/ plain loop", "images/s of CPU", "/ plain loop"), rows)
    digits(bench.model.cpu(), bench.projection, bench.head, bench.ready)


@torch.inference_mode()
def digits(model: CLIPVisionModel, projection: torch.Tensor, head: torch.Tensor, pixels: torch.Tensor) -> None:
    """How far a cosine moves with its batch, and what bfloat16 does to predictions before near ties are repeated."""
    scorer = Scorer(model, projection, FIELDS, Machine.on(torch.device("cpu"), "float32"))
    some = pixels[:32]
    exact = scorer.features(some, "float64") @ head.double().T
    for precision in ("float32", "bfloat16"):
        found = [
            torch.cat([scorer.features(part, precision) for part in some.split(size)]).double() @ head.double().T
            for size in (1, 7, 32)
        ]
        moved = max(float((one - other).abs().max()) for one in found for other in found)
        wrong = max(float((one - exact).abs().max()) for one in found)
        best = found[2].topk(2).values
        near = float((best[:, 0] - best[:, 1] < TOO_CLOSE[precision]).double().mean())
        flips = int((found[2].argmax(dim=1) != exact.argmax(dim=1)).sum())
        print(
            f"- {precision}: a cosine moves by {moved:.1e} with its batch and is off by {wrong:.1e} from float64; "
            f"{flips} of {len(some)} predictions differ; {near:.0%} are near ties, scored again"
        )


if __name__ == "__main__":
    main()
