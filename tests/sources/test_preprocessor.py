"""What a source says of images: the same pixels as transformers makes of the same file, or a sentence that says why."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from towers import write_tower
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hfcart.clip.pixels import normalised, to_pixels
from hfcart.commands.merge import merge_folder
from hfcart.errors import CorruptFileError
from hfcart.progress import Progress
from hfcart.recipes.merge_recipe import Recipe
from hfcart.sources.preprocessor import PreprocessorError, clip_default, read_preprocessor, to_json
from hfcart.sources.stores import LocalStore
from hfcart.zero_shot.heads import open_base
from hfcart.zero_shot.loaded_tower import load_tower

SIDE = 16  # of the tower


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def read(folder: Path, **files: object) -> dict | None:
    return read_preprocessor(LocalStore(write(folder, **files)), SIDE)


def theirs(folder: Path, picture: Image.Image) -> torch.Tensor | str:
    """The pixels of transformers for this folder, or what it says of it."""
    try:
        return CLIPImageProcessorPil.from_pretrained(folder)(images=picture, return_tensors="pt")["pixel_values"]
    except Exception as error:  # the reference refuses in many ways
        return f"{type(error).__name__}: {error}"


def ours(fields: dict, picture: Image.Image) -> torch.Tensor:
    return normalised(to_pixels(picture, fields)[None], fields)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = max(1.0, float(other.double().abs().max()))
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=0, atol=1e-5 * scale)


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


FLAG = st.sampled_from([True, True, True, False, None])
EDGE = st.sampled_from([SIDE, SIDE, SIDE + 4, 9, 224])
SIZE = st.one_of(
    EDGE,
    st.just([SIDE, SIDE]),
    st.tuples(EDGE, EDGE).map(list),
    st.builds(lambda h, w: {"height": h, "width": w}, EDGE, EDGE),
    st.just({"height": SIDE, "width": SIDE}),
    st.builds(lambda e: {"shortest_edge": e}, EDGE),
    st.builds(lambda e, at_most: {"shortest_edge": e, "longest_edge": at_most}, EDGE, st.sampled_from([20, 7, None])),
    st.none(),
    st.sampled_from([16.0, "16", True, 0, -4, [16], [16, 16, 16], {"longest_edge": 16}, {"height": 16, "width": None}]),
    st.just({"max_height": 16, "max_width": 20}),
)
CROP = st.one_of(
    st.sampled_from([SIDE, [SIDE, SIDE], {"height": SIDE, "width": SIDE}]),
    st.none() | st.sampled_from([-4, 0, 8, "16", [16], [16, 8], {"shortest_edge": 16}, {"height": 16.0, "width": 16}]),
)
NUMBER = st.floats(0.0625, 2, width=32) | st.integers(1, 2)
STATISTIC = st.one_of(NUMBER, st.lists(NUMBER, min_size=3, max_size=3), st.none(), st.just([0.5]), st.just("0.5"))
KEYS = {
    "image_processor_type": st.sampled_from(["CLIPImageProcessor", "CLIPImageProcessorFast", None]),
    "feature_extractor_type": st.sampled_from(["CLIPFeatureExtractor", None]),
    "do_resize": FLAG,
    "size": SIZE,
    "default_to_square": FLAG,
    "use_square_size": st.sampled_from([False, None, True]),
    "resample": st.sampled_from([0, 1, 2, 3, 4, 5, 3, 3, None, "bicubic", 3.0, True, 9]),
    "do_center_crop": FLAG,
    "crop_size": CROP,
    "do_rescale": FLAG,
    "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1, 0.01, None, "1/255"]),
    "do_normalize": FLAG,
    "image_mean": STATISTIC,
    "image_std": STATISTIC,
    "do_convert_rgb": FLAG,
    "do_pad": st.sampled_from([False, None, True]),
    "pad_size": st.sampled_from([None, SIDE, [SIDE, SIDE], {"height": SIDE, "width": SIDE}, 20]),
    "processor_class": st.just("CLIPProcessor"),
    "data_format": st.sampled_from(["channels_first", "channels_last"]),
    "input_data_format": st.sampled_from(["channels_first", None]),
    "do_flip": st.just(True),
}
FITS = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
# Any few of the keys over a file that fits, and files of any keys at all.
CONFIGS = st.one_of(
    st.dictionaries(st.sampled_from(sorted(KEYS)), st.none(), max_size=5).flatmap(
        lambda some: st.fixed_dictionaries({k: KEYS[k] for k in some}).map(lambda own: {**FITS, **own})
    ),
    st.fixed_dictionaries({}, optional=KEYS),
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=CONFIGS,
    inside=st.booleans(),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_any_file_gives_the_pixels_of_transformers_or_a_sentence(config, inside, width, height, seed) -> None:
    """And what is written in its place gives transformers the same pixels once more."""
    with tempfile.TemporaryDirectory() as root:
        folder, image = Path(root), picture(width, height, seed)
        name = "processor_config" if inside else "preprocessor_config"
        where = f"{folder.name}/{name}.json"
        try:
            fields = read(folder, **{name: {"image_processor": config} if inside else config})
        except CorruptFileError as error:
            assert error.message.startswith(where) and error.message.endswith(".") and error.hint
            key = re.match(r" has (?:no )?(\w+)", error.message.removeprefix(where))
            assert key and key[1] in KEYS, error.message
            return
        assert fields is not None
        reference, found = theirs(folder, image), ours(fields, image)
        assert found.shape == (1, 3, SIDE, SIDE) and bool(found.isfinite().all())
        if isinstance(reference, torch.Tensor):
            assert equal(found, reference), (config, fields)
        (folder / f"{name}.json").unlink()
        (folder / "preprocessor_config.json").write_bytes(to_json(fields))
        again = theirs(folder, image)
        if isinstance(again, str):  # of an image far longer than a longest edge allows, nothing is left
            assert "longest_edge" in fields["size"], again
        else:
            assert equal(found, again)


BOUNDED, NO_CROP = {"shortest_edge": 16, "longest_edge": 20}, {"do_center_crop": False}


# Each of them is taken: a rule that refused everything would pass the test above.
@pytest.mark.parametrize(
    ("own", "meaning"),
    [
        ({"do_convert_rgb": None, "image_mean": 0.5}, {"image_mean": [0.5] * 3}),
        ({"size": [16, 20]}, {"size": {"height": 16, "width": 20}}),
        ({"size": BOUNDED}, {"size": BOUNDED}),
        ({"size": [16, 16], **NO_CROP, "crop_size": None}, {"size": {"height": 16, "width": 16}, **NO_CROP}),
        ({"do_rescale": None, "rescale_factor": None}, {"do_rescale": False}),
        ({"size": 16, "default_to_square": True}, {"size": {"height": 16, "width": 16}}),
        ({"use_square_size": True}, {"size": {"height": 224, "width": 224}}),
        ({"size": None}, {"size": {"shortest_edge": 224}}),  # as a file that leaves it out
        ({"do_resize": None}, {"do_resize": False}),
        ({"do_pad": True, "pad_size": 16}, {}),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 16, "crop_size": 16, "secret": "left out"}, {}),
    ],
)
def test_what_a_key_means(tmp_path: Path, own: dict, meaning: dict) -> None:
    fields = read(tmp_path, preprocessor_config={**FITS, **own})
    assert fields == {**clip_default(SIDE), **meaning}
    reference = theirs(tmp_path, picture(37, 53, 1))
    if isinstance(reference, torch.Tensor):  # a null size with a resize is refused there since 5.0
        assert equal(ours(fields, picture(37, 53, 1)), reference)
    else:
        assert own == {"size": None}


def test_which_file_is_read(tmp_path: Path) -> None:
    """transformers takes the image_processor of a processor_config.json before a preprocessor_config.json."""
    own = {"image_processor": {**clip_default(SIDE), "resample": 2}, "processor_class": "CLIPProcessor"}
    fields = read(tmp_path, processor_config=own, preprocessor_config=clip_default(SIDE))
    assert fields == {**clip_default(SIDE), "resample": 2}
    assert equal(ours(fields, picture(30, 20, 0)), theirs(tmp_path, picture(30, 20, 0)))
    assert read(tmp_path, processor_config={"processor_class": "CLIPProcessor"}) == clip_default(SIDE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (clip_default(224), 'has crop_size = {"height": 224, "width": 224}, expected 16 x 16 pixels'),
        ({"size": 16}, "has no crop_size, expected 16 x 16 pixels, which its tower takes (left out, it is 224)"),
        ({"crop_size": {"height": 16, "width": 8}}, "has crop_size"),
        ({**FITS, "crop_size": "large"}, 'has crop_size = "large", expected {height, width}'),
        ({**FITS, "do_center_crop": False}, "has size"),
        ({**FITS, "do_center_crop": False, "do_resize": False}, "has do_center_crop = false, expected true"),
        ({**FITS, "image_mean": [0.5, 0.5]}, "has image_mean"),
        ({**FITS, "image_mean": 10**400}, "has image_mean"),
        ({**FITS, "size": {"shortest_edge": 10**9}}, "has size"),
        ({**FITS, "do_resize": "yes"}, 'has do_resize = "yes", expected true or false'),
        ({**FITS, "size": {"evil": 3}}, "has size"),
        ({**FITS, "resample": 999}, "has resample = 999"),
        ({**FITS, "resample": "bicubic"}, 'has resample = "bicubic"'),
        ({**FITS, "image_std": [0.5, 0.0, 0.5]}, "has image_std"),
        ({**FITS, "do_pad": True, "pad_size": 20}, "has pad_size = 20"),
        ({**FITS, "image_processor_type": "ViTImageProcessor"}, 'has image_processor_type = "ViTImageProcessor"'),
        ({**FITS, "image_processor_type": ["\x1b[31m" * 99]}, "has image_processor_type"),
        ('{"rescale_factor": NaN}', "is no JSON"),
        ('{"image_mean": [0.5, Infinity, 0.5]}', "is no JSON"),
        ("{not json", "is no JSON"),
        ('{"size": 16, "size": 16}', "is no JSON"),
        ([], "is no JSON object"),
        ("null", "is no JSON object"),
    ],
)
def test_what_cannot_be_followed_is_named(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(CorruptFileError) as caught:
        read(tmp_path, preprocessor_config=content)
    assert caught.value.message.startswith(f"{tmp_path.name}/preprocessor_config.json {said}")
    assert len(caught.value.message) < 400 and "\x1b" not in caught.value.message


def test_no_file_at_all(tmp_path: Path) -> None:
    assert read(tmp_path) is None


class Warnings(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_tower_or_base_is_refused_before_images_are_read(tmp_path: Path) -> None:
    own = {**FITS, "do_center_crop": False, "do_resize": False}
    for form, load in (("prefixed", load_tower), ("full", open_base)):
        folder = write_clip(tmp_path / form, 1) if form == "full" else write_tower(tmp_path / form, 1)
        with pytest.raises(PreprocessorError, match=f"^{form}/preprocessor_config.json has do_center_crop = false"):
            load(str(write(folder, preprocessor_config=own)), Progress())


def test_a_file_that_cannot_be_read_stops_a_merge(tmp_path: Path) -> None:
    """Unlike one that says what cannot be followed: it may say anything."""
    write(write_tower(tmp_path / "t1", 1), preprocessor_config=" " * (1 << 21))
    recipe = Recipe(sources=(str(tmp_path / "t1"),), method="average", out=str(tmp_path / "m"))
    with pytest.raises(CorruptFileError, match="t1/preprocessor_config.json has 2,097,152 bytes"):
        merge_folder(recipe, Progress())


def test_a_merge_writes_what_its_sources_mean_or_says_which_was_passed_over(tmp_path: Path) -> None:
    own = {**FITS, "do_convert_rgb": None, "image_mean": 0.5, "image_std": 0.1, "size": [16, 16], "resample": 2}
    for i in (1, 2):
        write(write_tower(tmp_path / f"t{i}", i), preprocessor_config=own)
    write(write_tower(tmp_path / "t3", 3), preprocessor_config={**own, "crop_size": "large"})
    progress = Warnings()
    sources = tuple(str(tmp_path / f"t{i}") for i in (1, 2, 3))
    merge_folder(Recipe(sources=sources, method="average", out=str(tmp_path / "m")), progress)
    assert len(progress.warnings) == 1 and progress.warnings[0].startswith("t3/preprocessor_config.json has crop_size")
    image = picture(37, 53, 2)
    assert equal(theirs(tmp_path / "m", image), theirs(tmp_path / "t1", image))
