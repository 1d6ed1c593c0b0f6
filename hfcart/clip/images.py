"""Image files of any kind to 8-bit RGB. The only importer of PIL (beside the demo, which draws)."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as _version

DECODER = f"Pillow {_version}"  # decides which files are images, and the last bits of their pixels
MAX_PIXELS = 1 << 26  # 8192 x 8192: far above any photo of a benchmark, far below what fills the memory

# What PIL has to say about a file is said by decoding it or not. The filter is set once: changing filters
# around each call, from many threads, would leave the process with the wrong ones.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableImage(ValueError):
    """The bytes are no image that can be read whole."""


def decode(data: bytes) -> Image.Image:
    """An image file's first frame as 8-bit RGB, turned as its EXIF orientation says. May be called from any thread.

    Modes are converted as transformers converts them (`convert_to_rgb`), which is PIL's own `convert` but for what is
    transparent: alpha, a transparent colour or palette entry is laid over white. 16-bit colours lose their lower
    byte, as in PIL. Where PIL clips, which makes a picture white or black without a word, other rules hold:

        16-bit greyscale            value / 257, rounded: 65535 is white
        32-bit whole numbers        as they are if all lie in 0 .. 255, as 16-bit ones if all lie in 0 .. 65535 (of a
                                    PGM always: PIL brings its values to that range), else undecodable
        floating point              as they are, cut to whole numbers, if all lie in 0 .. 255 and one is above 1;
                                    black if all are 0; else undecodable, since nothing tells which value is white

    Args:
        data: the file's bytes.

    Raises:
        UndecodableImage: no image, a broken one, one of more than MAX_PIXELS, or one whose values have no scale.
    """
    if not data:
        raise UndecodableImage("it is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check(image)
            image.load()
            _check(image)  # an icon's size is that of the picture in it, which is known now
            return _rgb(_upright(image), str(image.format))
    except UndecodableImage:
        raise
    except UnidentifiedImageError:
        raise UndecodableImage("it is no image file of a known kind") from None
    except MemoryError:
        raise UndecodableImage("it does not fit into memory") from None
    except Exception as error:  # decoders of dozens of formats, fed with anything, raise nearly anything
        said = " ".join(str(error).split())[:200]  # it may quote the file
        raise UndecodableImage(f"{type(error).__name__}: {said if said.isprintable() else ascii(said)}") from None


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UndecodableImage(f"it has {width} x {height} pixels, expected at most {MAX_PIXELS:,}")
    if image.format == "EPS":
        raise UndecodableImage("it is PostScript: a program, which PIL hands to Ghostscript to run")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF around a good image is common, and says nothing of its orientation
        return image


def _rgb(image: Image.Image, format: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        low, high = float(np.asarray(image).min()), float(np.asarray(image).max())
        found = f"its values go from {low:g} to {high:g}"
        if image.mode == "I" and (format == "PPM" or not 0 <= low <= high <= 255):
            if not 0 <= low <= high <= 65535:
                raise UndecodableImage(f"{found}: expected 0 to 255, or to 65535")
            return _from_16_bits(image)
        if not 0 <= low <= high <= 255 or (image.mode == "F" and 0 < high <= 1):  # a NaN is in no range
            raise UndecodableImage(f"{found}, in floating point: expected 0 to 255")
    elif image.mode != "LAB" and ("A" in image.getbands() or image.info.get("transparency") is not None):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    # point() cuts, so half of one is added; a value just between two whole numbers there is none.
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
