"""Image files of any kind to 8-bit RGB. The only importer of PIL (beside the demo, which draws)."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageOps

MAX_PIXELS = 1 << 26  # 8192 x 8192: far above any photo of a benchmark, far below what fills the memory

_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")

# What PIL has to say about a file is said by decoding it or not. The filter is set once: changing filters
# around each call, from many threads, would leave the process with the wrong ones.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableImage(ValueError):
    """The bytes are no image that can be read whole."""


def decode(data: bytes) -> Image.Image:
    """An image file's first frame as 8-bit RGB, turned as its EXIF orientation says. May be called from any thread.

    Greyscale is repeated over the channels; an alpha channel is dropped, not blended (as PIL's own convert
    does, which the published numbers rest on); 16-bit values are scaled to 8 bits, not clipped.

    Args:
        data: the file's bytes.

    Raises:
        UndecodableImage: no image, a broken one, or one of more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UndecodableImage(f"it has {width} x {height} pixels, expected at most {MAX_PIXELS:,}")
            image.load()
            return _rgb(_upright(image))
    except UndecodableImage:
        raise
    except MemoryError:
        raise UndecodableImage("it does not fit into memory") from None
    except Exception as error:  # decoders of dozens of formats, fed with anything, raise nearly anything
        raise UndecodableImage(f"{type(error).__name__}: {str(error)[:200]}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF around a good image is common, and says nothing of its orientation
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # convert("L") would clip: everything above 255 becomes white.
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    image.info.pop("transparency", None)  # of a palette: not used, and warned about
    return image.convert("RGB")
