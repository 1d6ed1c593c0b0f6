"""preprocessor_config.json of the merged tower: a source's, if it fits, else CLIP's own at the config's image size."""

from __future__ import annotations

import json
from typing import Any

from hfcart.errors import CorruptFileError
from hfcart.reader import strict_json
from hfcart.stores import Store

FILE = "preprocessor_config.json"
# Mean and standard deviation per channel of CLIP's training images (Radford et al. 2021, released code).
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]


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
    """A source's preprocessing in one canonical form, or None if it has none that fits the tower.

    Reads preprocessor_config.json, or the image_processor part of a processor_config.json (all that
    CLIPProcessor 5.x saves). Only the fields of `clip_default` are taken, each checked: the file is a
    stranger's.
    """
    for name, part in ((FILE, None), ("processor_config.json", "image_processor")):
        try:
            found = strict_json(store.small(name) or b"{}")
        except (ValueError, CorruptFileError):
            continue
        found = found.get(part) if part and isinstance(found, dict) else found
        fields = _canonical(found, image_size) if isinstance(found, dict) and found else None
        if fields is not None:
            return fields
    return None


def _canonical(found: dict[str, Any], image_size: int) -> dict[str, Any] | None:
    out = clip_default(image_size)
    size, crop = found.get("size", out["size"]), found.get("crop_size", out["crop_size"])
    found = {
        **found,
        # Releases before 4.26 stored one number for either.
        "size": {"shortest_edge": size} if isinstance(size, int) else size,
        "crop_size": {"height": crop, "width": crop} if isinstance(crop, int) else crop,
    }
    for name, default in out.items():
        value = found.get(name, default)
        if name == "image_processor_type":
            continue
        if not _same_kind(value, default):
            return None
        if (name == "resample" and value not in range(6)) or (name == "image_std" and min(value) <= 0):
            return None
        out[name] = value
    final = out["crop_size"] if out["do_center_crop"] else out["size"]
    return out if set(final.values()) == {image_size} else None


def _same_kind(value: object, default: object) -> bool:
    if isinstance(default, dict):
        keys = ({"shortest_edge"}, {"height", "width"})
        return (
            isinstance(value, dict)
            and set(value) in keys
            and all(type(v) is int and 0 < v <= 10_000 for v in value.values())
        )
    if isinstance(default, list):
        return isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_json(fields: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return (json.dumps(fields, indent=2) + "\n").encode()
