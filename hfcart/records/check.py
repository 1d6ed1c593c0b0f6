"""What a true record cannot say, of the parts that several records share: what types alone do not rule out.

Records are read back from folders and repos of strangers. What is no free text has a form, and is held to it here;
free text (labels, titles, names of splits) is bounded, and escaped where it is shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from hfcart.records._adaptation import AdaptedTask
from hfcart.records._merge import SourceData, TensorRecord
from hfcart.records._selection import Selected
from hfcart.records._sources import Environment, FolderRecord, ImagesRecord, SourceRecord
from hfcart.records._training import TrainedTask, TrainingCurve, Validation
from hfcart.records.adapters import is_adapter_file
from hfcart.records.repo_id import is_place, is_repo_id, is_revision, split_place

TASK_ID = r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?"
PRECISIONS = ("bfloat16", "float32")
PARTS = ("test", "validation", "train")
MOST = 10**12  # of anything that is counted
MAX_SAMPLE_SEED = 1 << 64  # and all below may draw a sample of images
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # torch's name -> safetensors'

MOST_LOSSES = 100  # of a training's curve
MOST_LOOKS = 1_000  # at the validation images; one before the first step and one after the last come to that

_TASK = re.compile(TASK_ID)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+_-]{0,60}")
_SOLVER = re.compile(r"[a-z]+(?:-[a-z]+){0,3}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_DEVICES = ("cpu", "cuda", "mps")


def within(field: str, faults: Iterable[str]) -> Iterator[str]:
    """The faults of a part of a record, each behind the name of the field that the part is."""
    return (f"{field}: {fault}" for fault in faults)


def is_sha256(text: str) -> bool:
    """Whether it is a digest: 64 hex digits."""
    return _SHA256.fullmatch(text) is not None


def is_commit(text: str | None) -> bool:
    """Whether it is a commit: 40 hex digits."""
    return text is not None and _COMMIT.fullmatch(text) is not None


def is_task_id(text: str) -> bool:
    """Whether a task may have this id."""
    return _TASK.fullmatch(text) is not None


def is_line(text: str, most: int = 500) -> bool:
    """Whether it is one printable line that is not empty."""
    return 0 < len(text) <= most and text.isprintable() and bool(text.strip())


def is_folder_name(text: str) -> bool:
    """Whether it is the name of a folder alone, and no path."""
    return is_line(text, 255) and not set(text) & {"/", "\\"} and text not in (".", "..", "~")


def is_label(text: str, commit: str | None) -> bool:
    """Whether a model may be called so: a Hub repo by its name, a folder (which has no commit) by its own."""
    if commit is not None:
        repo, place = split_place(text)
        return is_repo_id(repo, namespace=True) and is_commit(commit) and (place is None or is_place(place))
    return 0 < len(text) <= 255 and "/" not in text and text not in (".", "..")


def faults_of_environment(environment: Environment) -> Iterator[str]:
    """What cannot be true of where something was computed, one phrase each."""
    for name in ("hfcart", "torch", "python"):
        if not _VERSION.fullmatch(getattr(environment, name)):
            yield f"its version of {name} is none"
    if environment.device not in _DEVICES:
        yield f"its device is none of {', '.join(_DEVICES)}"
    if not _SOLVER.fullmatch(environment.solver):
        yield "its solver has no proper name"
    if not is_line(environment.platform, 200) or not is_line(environment.processor, 200):
        yield "its platform or processor is not one line of text"


def faults_of_dataset(dataset: ImagesRecord) -> Iterator[str]:
    """What cannot be true of a pinned split."""
    if isinstance(dataset, FolderRecord):
        if not is_folder_name(dataset.folder) or not is_line(dataset.split, 100) or not is_sha256(dataset.sha256):
            yield "its folder of images has no plain name, split or sha256"
        return
    if not is_repo_id(dataset.repo) or not is_commit(dataset.commit):
        yield "its dataset is no Hub repo at a commit"
    if not is_line(dataset.split) or not (dataset.config is None or is_line(dataset.config)):
        yield "the split or the configuration is not one line of text"


def faults_of_task(task: AdaptedTask | SourceData | Selected | TrainedTask) -> Iterator[str]:
    """What cannot be true of the images of a task that something was learned from."""
    if not is_task_id(task.task):
        yield "its task has no proper name"
    if not is_line(task.title):
        yield "the title of a task is not one line of text"
    if not is_sha256(task.card_sha256):
        yield "card_sha256 is no sha256"
    if not (0 <= task.images <= MOST and 0 <= task.undecodable <= MOST):
        yield "a count is out of range"
    yield from faults_of_dataset(task.dataset)


def faults_of_curve(curve: TrainingCurve, steps: int, tasks: int) -> Iterator[str]:
    """What cannot be true of the curve of a training of so many steps on so many tasks."""
    if not 1 <= len(curve.steps) == len(curve.losses) <= MOST_LOSSES:
        yield "its curve has not the points of one"
        return
    if list(curve.steps) != sorted({step for step in curve.steps if step > 0}) or curve.steps[-1] != steps:
        yield "the steps of its curve are not those of its training"
    if not all(0 <= loss <= MOST for loss in curve.losses):
        yield "a loss of its curve is out of range"
    if not 1 <= curve.kept <= steps:
        yield "the step that it kept is none of its training"
    if curve.validation is not None:
        yield from _faults_of_validation(curve.validation, steps, tasks)


def _faults_of_validation(validation: Validation, steps: int, tasks: int) -> Iterator[str]:
    looks, images = validation.looks, validation.images
    if not 1 <= len(looks) <= MOST_LOOKS + 2 or len(images) != tasks:
        yield "it was validated too often, or on other tasks"
        return
    if [look.step for look in looks] != sorted({look.step for look in looks if 0 <= look.step <= steps}):
        yield "the steps it was validated after are not those of its training"
    if not all(1 <= count <= MOST for count in images):
        yield "a number of its validation images is out of range"
    for look in looks:
        if len(look.correct) != tasks or not all(0 <= c <= n for c, n in zip(look.correct, images, strict=True)):
            yield "more validation images are right than there are"


def faults_of_source(source: SourceRecord) -> Iterator[str]:
    """What cannot be true of a pinned model, apart from what its card says."""
    if source.repo is not None and source.label != source.repo + (f":{source.path}" if source.path else ""):
        yield "a source is called otherwise than its repo"
    if source.path is not None and (source.repo is None or not is_place(source.path)):
        yield "the place of a source inside its repo is none"
    if (source.repo is None) != (source.commit is None) or not is_label(source.label, source.commit):
        yield "a source is neither a Hub repo at a commit nor a folder's name"
    if source.revision is not None and (source.repo is None or not is_revision(source.revision)):
        yield "the revision of a source is none"
    if not all(is_line(file.name, 255) and "/" not in file.name for file in source.files):
        yield "a file of a source has no plain name"
    if not all(0 <= file.size < 1 << 62 and is_sha256(file.sha256) for file in source.files):
        yield "a file of a source has no size or no sha256"
    digests = [file.sha256 for file in source.files]
    if source.adapter_of is not None:
        digests.append(source.adapter_of.sha256)
        if source.adapter_of.adapter_of is not None:
            yield "the base of an adapter is an adapter itself"
        else:
            yield from faults_of_source(source.adapter_of)
    joined = "".join(digests)
    if source.sha256 != (joined if len(digests) == 1 else hashlib.sha256(joined.encode()).hexdigest()):
        yield "the sha256 of a source is not that of its files"


def faults_of_tensors(tensors: Sequence[TensorRecord], expected: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """What cannot be true of the tensors of a tower with these names and shapes."""
    if sorted(tensor.name for tensor in tensors) != sorted(expected):
        yield "its tensors are not those of its architecture"
        return
    for tensor in tensors:
        if tensor.shape != expected[tensor.name]:
            yield f"{tensor.name} has not the shape of its architecture"
        if not is_sha256(tensor.sha256):
            yield f"the sha256 of {tensor.name} is none"
        if not (tensor.energy is None or 0 <= tensor.energy <= 1):
            yield f"the energy of {tensor.name} is not in [0, 1]"
        # Where directions are learned, none may stay.
        ranks = ((tensor.rank, 0), (tensor.full_rank, 1))
        if any(rank is not None and not least <= rank <= MOST for rank, least in ranks):
            yield f"a rank of {tensor.name} is out of range"
        if tensor.rank is not None and (tensor.full_rank is None or tensor.rank > tensor.full_rank):
            yield f"the rank of {tensor.name} is above the full one"


def faults_of_files(files: dict[str, str], most: int) -> Iterator[str]:
    """What cannot be true of the digests of a folder's files, of which there are `most` at most."""
    if not 1 <= len(files) <= most:
        yield f"it lists {len(files):,} files"
    named = all(_PLAIN.fullmatch(file) or is_adapter_file(file) for file in files)
    if not named or not all(map(is_sha256, files.values())):
        yield "a file has no plain name or no sha256"
