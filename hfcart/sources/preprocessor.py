"""preprocessor_config.json: what a tower's images go through, read as transformers reads it, in one canonical form."""

from __future__ import annotations

import json
import math
from typing import Any

from hfcart.clip import open_clip
from hfcart.clip.to_open_clip import inexpressible
from hfcart.errors import CorruptFileError
from hfcart.formats.safetensors_file import strict_json
from hfcart.sources.stores import Store

FILE = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # all that CLIPProcessor 5.x saves; transformers reads it first
# Mean and standard deviation per channel of CLIP's training images (Radford et al. 2021, released code).
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]

_CLIP_SIZE = 224  # what transformers takes for a size that a file leaves out, whatever tower it belongs to
_KINDS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # open_clip's words for Pillow's filters
_LARGEST = 10_000  # pixels a side
_FINITE = 1e6
# What each step needs; a step that is switched off asks for nothing.
_STEPS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


class PreprocessorError(CorruptFileError):
    """The file was read, but what it says cannot be followed: a merge of weights may go on without it."""


class _Unusable(Exception):
    """A key, and what was expected of it."""

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(key, expected)
        self.key, self.expected = key, expected


def clip_default(image_size: int) -> dict[str, Any]:
    """CLIP's own preprocessing: bicubic resize of the short side, centre crop, RGB, normalise."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "do_convert_rgb": True,
    }


def read_preprocessor(store: Store, image_size: int) -> dict[str, Any] | None:
    """A source's preprocessing in one canonical form, or None if it has no file that states one.

    The file is the one that transformers takes, processor_config.json with an image_processor or else
    preprocessor_config.json, and every key means what its CLIPImageProcessor makes of it: pixels are equal to 1e-5.
    Only the fields of `clip_default` are taken, each checked: the file is a stranger's.

    Args:
        store: where the source's files are.
        image_size: pixels a side that its tower takes.

    Raises:
        PreprocessorError: the file is no JSON object, a key holds what cannot be followed, or what comes out is not of
            the tower's size. It names the file and the key.
        CorruptFileError: the file cannot be read.
    """
    stated = _stated(store, image_size)
    if stated is None:
        return None
    where, found = stated
    try:
        return _canonical(found, image_size)
    except _Unusable as error:
        key, value = error.key, found.get(error.key)
        has = f"has {key} = {json.dumps(value)[:60]}" if key in found else f"has no {key}"
        raise _bad(f"{where} {has}, expected {error.expected}.") from None


def _stated(store: Store, image_size: int) -> tuple[str, dict[str, Any]] | None:
    """The file's name for messages, and its object."""
    for name in (_PROCESSOR, FILE, open_clip.CONFIG):
        data = store.small(name)
        if data is None:
            continue
        where = f"{store.label}/{name}"
        try:
            found = strict_json(data)
        except ValueError as error:
            raise _bad(f"{where} is no JSON: {str(error)[:200]}.") from None
        if not isinstance(found, dict):
            raise _bad(f"{where} is no JSON object.")
        if name == _PROCESSOR:
            found = found.get("image_processor")
            if found is None:
                continue
            if not isinstance(found, dict):
                raise _bad(f"{where} has an image_processor that is no JSON object.")
        elif name == open_clip.CONFIG:
            found = _of_open_clip(found.get("preprocess_cfg"), where, image_size)
        return where, found
    return None


def _of_open_clip(found: object, where: str, image_size: int) -> dict[str, Any]:
    """What open_clip makes of its preprocess_cfg, in transformers' words; the size is always the tower's own."""
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise _bad(f"{where} has a preprocess_cfg that is no JSON object.")
    mode = found.get("resize_mode")
    if mode not in (None, "shortest", "squash") or found.get("mode") not in (None, "RGB"):
        key = "mode" if mode in (None, "shortest", "squash") else "resize_mode"
        raise _bad(f"{where} has {key} = {json.dumps(found[key])[:60]} in its preprocess_cfg, expected CLIP's own.")
    resample = 2 if found.get("interpolation") == "bilinear" else 3  # whatever else it says is bicubic there
    square = {"height": image_size, "width": image_size}
    size = {"size": square if mode == "squash" else {"shortest_edge": image_size}, "crop_size": image_size}
    return {**size, "image_mean": found.get("mean"), "image_std": found.get("std"), "resample": resample}


def preprocess_cfg(fields: dict[str, Any], image_size: int) -> dict[str, Any]:
    """A preprocessor as open_clip_config.json states it: the same pixels, but for where a crop is cut.

    Where an odd number of pixels is cut off, torchvision, which open_clip crops with, may begin one pixel later.

    Args:
        fields: in the canonical form.
        image_size: pixels a side that the tower takes.

    Raises:
        UsageError: open_clip has no such preprocessing.
    """
    squash = {"height": image_size, "width": image_size}
    modes = {"shortest": {"shortest_edge": image_size}, "squash": squash}
    mode = next((mode for mode, size in modes.items() if fields["do_resize"] and fields["size"] == size), None)
    if mode is None or (mode == "shortest" and not fields["do_center_crop"]):
        size = json.dumps(fields["size"]) if fields["do_resize"] else "not at all"
        known = f"a shortest side of {image_size} and a crop, or a square of {image_size}"
        raise inexpressible(f"resizes images to {size} before it takes {image_size} x {image_size} pixels", known)
    if fields["resample"] not in _INTERPOLATION:
        raise inexpressible(f"resizes images with Pillow's filter {fields['resample']}", "2 (bilinear) and 3 (bicubic)")
    if not fields["do_rescale"] or not math.isclose(fields["rescale_factor"], 1 / 255, rel_tol=1e-6):
        factor = fields["rescale_factor"] if fields["do_rescale"] else 1
        raise inexpressible(f"multiplies pixels by {factor}", "1/255")
    plain = ([0.0] * 3, [1.0] * 3)
    mean, std = (fields["image_mean"], fields["image_std"]) if fields["do_normalize"] else plain
    interpolation = _INTERPOLATION[fields["resample"]]
    return {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}


def _bad(message: str) -> PreprocessorError:
    return PreprocessorError(
        message, hint="Mend the file in a copy of the model, and give that folder in place of the repo."
    )


def _canonical(found: dict[str, Any], image_size: int) -> dict[str, Any]:
    kind = found.get("image_processor_type") or found.get("feature_extractor_type")
    if kind is not None and kind not in _KINDS:
        key = "image_processor_type" if found.get("image_processor_type") else "feature_extractor_type"
        raise _Unusable(key, _KINDS[0])
    out, default = clip_default(image_size), clip_default(_CLIP_SIZE)
    for step, names in _STEPS.items():
        out[step] = _flag(found, step, default=True)
        for name in names if out[step] else ():
            value = found.get(name)  # null is the default
            out[name] = default[name] if value is None else _value(name, value, found)
    if out["do_resize"] and _flag(found, "use_square_size", default=False):  # of CLIP's size, whatever `size` says
        out["size"] = {"height": _CLIP_SIZE, "width": _CLIP_SIZE}
    # Null too converts: without it transformers takes RGB images alone, which are converted to themselves.
    out["do_convert_rgb"] = found.get("do_convert_rgb") is None or _flag(found, "do_convert_rgb", default=True)
    _check_sizes(found, out, image_size)
    return out


def _check_sizes(found: dict[str, Any], out: dict[str, Any], image_size: int) -> None:
    """Whatever comes in, what comes out must be a square of the tower's size."""
    square = {"height": image_size, "width": image_size}
    wanted = f"{image_size} x {image_size} pixels, which its tower takes"
    if out["do_center_crop"]:
        if out["crop_size"] != square:
            raise _Unusable("crop_size", wanted + ("" if "crop_size" in found else f" (left out, it is {_CLIP_SIZE})"))
    elif not out["do_resize"]:
        raise _Unusable("do_center_crop", f"true: without resize and crop images are not of {wanted}")
    elif out["size"] != square:
        key = "use_square_size" if found.get("use_square_size") else "size"
        raise _Unusable(key, f"{wanted}: it crops nothing, and other sizes do not make images equal")
    if _flag(found, "do_pad", default=False):
        size = found.get("pad_size")
        if size is not None and _size("pad_size", size, square=True) != square:
            raise _Unusable("pad_size", wanted)


def _flag(found: dict[str, Any], name: str, *, default: bool) -> bool:
    """True or false; null is off, as transformers reads it."""
    value = found.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise _Unusable(name, "true or false")
    return bool(value)


def _value(name: str, value: Any, found: dict[str, Any]) -> Any:  # noqa: ANN401 (any JSON in, its canonical form out)
    if name in ("size", "crop_size"):
        return _size(name, value, square=name == "crop_size" or _flag(found, "default_to_square", default=False))
    if name == "resample":
        # transformers takes a word, or 3.0, for bilinear without saying so.
        if type(value) is not int or not 0 <= value <= 5:
            raise _Unusable(name, "one of Pillow's numbers, 0 to 5 (3 is bicubic)")
        return value
    if name == "rescale_factor":
        return _number(name, value)
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or (name == "image_std" and not all(_number(name, v) >= 1e-6 for v in values)):
        raise _Unusable(name, "three numbers or one" + (", above 0" if name == "image_std" else ""))
    return [_number(name, v) for v in values]


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _FINITE:
        raise _Unusable(name, f"a number up to {_FINITE:,.0f}")
    return value


def _size(name: str, value: object, *, square: bool) -> dict[str, int]:
    """Of one number, [height, width], or the names that transformers knows."""
    if isinstance(value, int):
        value = [value, value] if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, dict) and value.get("longest_edge", ...) is None:
        value = {key: each for key, each in value.items() if key != "longest_edge"}
    forms = [{"height", "width"}, *([{"shortest_edge"}, {"shortest_edge", "longest_edge"}] if name == "size" else [])]
    if not isinstance(value, dict) or set(value) not in forms:
        raise _Unusable(name, " or ".join(f"{{{', '.join(sorted(form))}}}" for form in forms))
    if not all(type(v) is int and 0 < v <= _LARGEST for v in value.values()):
        raise _Unusable(name, f"whole numbers of pixels, 1 to {_LARGEST:,}")
    return value


def to_json(fields: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return (json.dumps(fields, indent=2) + "\n").encode()
