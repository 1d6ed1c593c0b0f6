"""Images to a tower's input, as CLIP's image processor makes it: resize, centre crop, scale, normalise.

The same numbers as transformers' processor (tests hold them together to 1e-5), without its arrays in between: pixels
stay 8 bits wide until a whole batch of them is on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

# Above so many pixels after the resize, only what the crop keeps of them is computed: a line of 60,000 x 1 pixels
# would be 13 million x 224 before its middle is cut out.
_WHOLE = 1 << 24


def to_pixels(image: Image, fields: dict[str, Any]) -> UInt8[torch.Tensor, "3 side side"]:
    """Resize and crop one RGB image.

    Args:
        image: 8-bit RGB, of any size.
        fields: a preprocessor in the canonical form of `hfcart.sources.preprocessor`.
    """
    size = _size(image.size, fields["size"]) if fields["do_resize"] else image.size
    box = (0, 0, *size)
    if fields["do_center_crop"]:
        height, width = fields["crop_size"]["height"], fields["crop_size"]["width"]
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        box = (left, top, left + width, top + height)  # beyond its borders an image is black
    if fields["do_resize"] and size[0] * size[1] > _WHOLE:
        image = _resized_part(image, size, box, fields["resample"])
    else:
        image = image.resize(size, fields["resample"]).crop(box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resized_part(image: Image, size: tuple[int, int], box: tuple[int, int, int, int], resample: int) -> Image:
    """`image.resize(size, resample).crop(box)`, up to rounding, in little more memory than the box takes."""
    source, whole, corners = np.array(image.size), np.array(size), np.array(box).reshape(2, 2)
    scale = source / whole
    start, stop = np.maximum(corners[0], 0), np.minimum(corners[1], whole)
    # Nearby pixels count too: no filter of PIL's reaches further than 3 pixels of the coarser of the two images.
    reach = 4 * np.maximum(scale, 1.0)
    low = np.maximum(np.floor(start * scale - reach), 0).astype(int)
    high = np.minimum(np.ceil(stop * scale + reach), source).astype(int)
    near = image.crop((*low.tolist(), *high.tolist()))
    part = near.resize((stop - start).tolist(), resample, (*(start * scale - low), *(stop * scale - low)))
    return part.crop((corners - start).ravel().tolist())


def normalised(pixels: UInt8[torch.Tensor, "b 3 side side"], fields: dict[str, Any]) -> Float[torch.Tensor, "b 3 s s"]:
    """A batch of 8-bit images as float32, scaled and normalised per channel, on the device they are on."""
    out = pixels.float()
    if fields["do_rescale"]:
        out *= fields["rescale_factor"]
    if fields["do_normalize"]:
        mean, std = (out.new_tensor(fields[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        out.sub_(mean).div_(std)
    return out


def _size(found: tuple[int, int], wanted: dict[str, int]) -> tuple[int, int]:
    """(width, height) to resize to, as transformers computes it: the longer side is rounded down.

    Where a longest edge bounds it, the shorter side is rounded to the nearest.
    """
    if "shortest_edge" not in wanted:
        return wanted["width"], wanted["height"]
    short, longest, (low, high) = wanted["shortest_edge"], wanted.get("longest_edge"), sorted(found)
    exact: float = short
    if longest is not None and high / low * short > longest:
        exact = longest * low / high
        short = round(exact)
    if short == low:
        return found
    short, long = max(short, 1), max(int(exact * high / low), 1)
    return (short, long) if found[0] <= found[1] else (long, short)
