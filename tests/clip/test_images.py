"""Pictures in every mode that files have: transformers' conversion, a rule of ours, or not decodable; and no bombs."""

from __future__ import annotations

import io
import sys
import zlib

import numpy as np
import pytest
from clips import png
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from running import ended
from transformers.image_transforms import convert_to_rgb

from hfcart.clip.images import MAX_PIXELS, UndecodableImage, decode
from hfcart.clip.pixels import _resized_part, to_pixels
from hfcart.sources.preprocessor import clip_default

RNG = np.random.default_rng(0)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = RNG.integers(0, 256, (16, 16, 4), dtype=np.uint8)


def file(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def lab() -> Image.Image:
    srgb, space = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(COLOUR[..., :3]), ImageCms.buildTransform(srgb, space, "RGB", "LAB"))


RGB, RGBA = Image.fromarray(COLOUR[..., :3]), Image.fromarray(COLOUR)
PALETTE = RGB.quantize(16)
KINDS = {
    "1": file(Image.fromarray(RAMP > 99)),
    "L": file(Image.fromarray(RAMP)),
    "L with a transparent grey": file(Image.fromarray(RAMP), transparency=77),
    "LA": file(Image.fromarray(COLOUR[..., :2], "LA")),
    "P": file(PALETTE),
    "P with transparent entries": file(PALETTE, transparency=bytes(range(0, 256, 16))),
    "GIF with a transparent entry": file(PALETTE, "GIF", transparency=3),
    "PA": file(PALETTE.convert("PA"), "TIFF"),
    "RGB": file(RGB),
    "RGB with a transparent colour": file(RGB, transparency=tuple(map(int, COLOUR[0, 0, :3]))),
    "RGBA": file(RGBA),
    "RGBA in WebP": file(RGBA, "WEBP", lossless=True),
    "CMYK": file(RGB.convert("CMYK"), "TIFF"),
    "CMYK in JPEG": file(RGB.convert("CMYK"), "JPEG"),
    "YCbCr": file(RGB.convert("YCbCr"), "TIFF"),
    "I as PIL writes an L": file(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_has_a_rule_for_follows_it(kind: str) -> None:
    """What is transparent lies over white, as in transformers 5; releases before took the colours under it."""
    theirs = convert_to_rgb(Image.open(io.BytesIO(KINDS[kind])), return_numpy=True)
    assert np.array_equal(np.asarray(decode(KINDS[kind])), theirs)


def test_lab_is_pil_s() -> None:
    """transformers takes its A for an alpha channel."""
    data = file(lab(), "TIFF")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def grey(data: bytes) -> list[int]:
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].ravel().tolist()


def tiff(values: object, dtype: str) -> bytes:
    return file(Image.fromarray(np.array([values], dtype)), "TIFF")


def test_sixteen_bits_are_rounded() -> None:
    values = [0, 1, 128, 129, 255, 256, 385, 386, 32767, 32768, 65278, 65406, 65407, 65535]
    rounded = [int(np.floor(value / 257 + 0.5)) for value in values]
    deep = Image.fromarray(np.array([values], np.uint16))
    pgm = b"P5 %d 1 65535\n" % len(values) + np.array(values, ">u2").tobytes()
    for data in (file(deep), file(deep, "TIFF"), file(deep, "JPEG2000"), tiff(values, "int32"), pgm):
        assert grey(data) == rounded
    assert grey(b"P5 2 1 1000\n" + np.array([3, 4], ">u2").tobytes()) == [1, 1]  # of 1000, and not of 255


def test_what_has_a_scale_is_taken_as_it_is() -> None:
    assert grey(tiff([0, 1, 2, 254, 255], "int32")) == [0, 1, 2, 254, 255]
    assert grey(tiff([0, 0], "int32")) == grey(tiff([0, 0], "float32")) == [0, 0]
    assert grey(tiff([0, 0.5, 1.5, 200.9, 255], "float32")) == [0, 0, 1, 200, 255]  # cut, as PIL does


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff([-1, 5], "int32"), "from -1 to 5"),
        (tiff([0, 65536], "int32"), "from 0 to 65536"),
        (tiff([0, 0.5, 1], "float32"), "from 0 to 1, in floating point"),
        (tiff([0, 255.5], "float32"), "from 0 to 255.5, in floating point"),
        (tiff([-0.5, 200], "float32"), "from -0.5 to 200, in floating point"),
        (tiff([0, 200, np.nan], "float32"), "from nan to nan, in floating point"),
        (tiff([np.nan, 200], "float32"), "from nan to nan, in floating point"),
        (tiff([0, np.inf], "float32"), "from 0 to inf, in floating point"),
        (b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1.0], "<f4").tobytes(), "from 0.5 to 1, in floating point"),
    ],
)
def test_what_has_none_is_not_guessed_at(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb(kind: bytes) -> bytes:
    """A PNG with 64 MB of zeros packed into one chunk in front of its pixels."""
    inside = kind + b"\0\0" + zlib.compress(bytes(1 << 26))
    return (data := png(Image.new("RGB", (4, 4))))[:33] + chunk(kind, inside) + data[33:]


def icon() -> bytes:
    """An icon that says 16 x 16, and holds a PNG of more than MAX_PIXELS."""
    inside = file(Image.new("1", (MAX_PIXELS // 1000, 1001)))
    return (
        b"\0\0\1\0\1\0" + bytes([16, 16, 0, 0, 1, 0, 1, 0]) + len(inside).to_bytes(4, "little") + b"\x16\0\0\0" + inside
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ran) print flush\nshowpage\n"


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's own, of the icon: here pytest's filters lie over ours
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bomb(b"zTXt"), "too large"),
        (bomb(b"iCCP"), "too large"),
        (icon(), "expected at most 67,108,864"),
        (POSTSCRIPT, "PostScript"),
        (b"", "it is empty"),
        (b"text", "no image file of a known kind"),
    ],
    ids=["text", "profile", "icon", "postscript", "nothing", "no picture"],
)
def test_no_file_is_a_bomb_or_a_program(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(data)


def test_texts_and_frames_are_no_obstacle() -> None:
    words = PngInfo()
    words.add_text("a", "b" * 1000, zip=True)
    assert decode(file(RGB, pnginfo=words)).size == (16, 16)
    frames = [Image.new("L", (16, 16), value) for value in (10, 200)]
    assert grey(file(frames[0], "TIFF", save_all=True, append_images=frames[1:])) == [10] * 256


# --- long ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [1, 2, 3, 5])
def test_only_what_the_crop_keeps_is_computed(resample: int) -> None:
    for width, height in ((60, 40), (400, 3), (3, 400), (1000, 1), (1, 1000)):
        picture = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for side, crop in ((16, 16), (20, 16), (16, 20), (200, 16), (3, 9)):
            size = (side, side * height // width) if width < height else (side * width // height, side)
            left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
            box = (left, top, left + crop, top + crop)
            whole = np.asarray(picture.resize(size, resample).crop(box)).astype(int)
            part = np.asarray(_resized_part(picture, size, box, resample)).astype(int)
            assert np.abs(part - whole).max() <= 1


LINES = """
import io, resource
from PIL import Image
from hfcart.clip.images import decode
from hfcart.clip.pixels import _resized_part, to_pixels
from hfcart.sources.preprocessor import clip_default
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MB
to_pixels(Image.new("RGB", (300, 200)), clip_default(224))
before = peak()
for size in ((60_000, 1), (1, 60_000), (3, 500_000)):
    picture = io.BytesIO()
    Image.new("L", size, 99).save(picture, "PNG")
    pixels = to_pixels(decode(picture.getvalue()), clip_default(224))
    assert pixels.shape == (3, 224, 224) and int(pixels.min()) == int(pixels.max()) == 99
print(peak() - before)
"""


def test_a_line_of_pixels_takes_no_gigabytes(clean_env: dict[str, str]) -> None:
    """The first of them would be 13 million x 224 pixels before its middle is cut out: 12 GB."""
    done = ended([sys.executable, "-c", LINES], env=clean_env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600


def test_an_image_of_a_usual_shape_is_resized_whole() -> None:
    """To the bit as transformers does it."""
    picture = Image.fromarray(RNG.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    whole = picture.resize((403, 224), 3).crop((89, 0, 313, 224))
    assert np.array_equal(to_pixels(picture, clip_default(224)).permute(1, 2, 0).numpy(), np.asarray(whole))
