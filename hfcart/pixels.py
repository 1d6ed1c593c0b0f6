"""Images to a tower's input, as CLIP's image processor makes it: resize, centre crop, scale, normalise.

The same numbers as transformers' processor (a test holds them together to 1e-6), without its arrays in between: pixels
stay 8 bits wide until a whole batch of them is on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pixels(image: Image, fields: dict[str, Any]) -> UInt8[torch.Tensor, "3 side side"]:
    """Resize and crop one RGB image.

    Args:
        image: 8-bit RGB, of any size.
        fields: a preprocessor in the canonical form of `hfcart.preprocessor`.
    """
    if fields["do_resize"]:
        image = image.resize(_size(image.size, fields["size"]), fields["resample"])
    if fields["do_center_crop"]:
        height, width = fields["crop_size"]["height"], fields["crop_size"]["width"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))  # beyond its borders an image is black
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
    """(width, height) to resize to. The longer side is rounded down, as torchvision does."""
    if "shortest_edge" not in wanted:
        return wanted["width"], wanted["height"]
    short, (width, height) = wanted["shortest_edge"], found
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short
