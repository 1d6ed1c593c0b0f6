"""The README's pictures, from a demo's folder: the first screen of its card, and its accuracy over rank.

python tests/bench/pictures.py hfcart-demo .github
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from browser import started, tab
from card_page import write_page
from PIL import Image


def main(demo: Path, out: Path) -> None:
    demo = demo.resolve()  # a page in a browser has a whole path
    page_file = write_page((demo / "merged" / "README.md").read_text(encoding="utf-8"), demo / "merged")
    with started() as browser, tab(browser, 1100, 960) as (page, _):
        page.goto(page_file.as_uri())
        save(page.screenshot(), out / "card.png")
    save((demo / "sweep-cart" / "figures" / "curve.png").read_bytes(), out / "demo.png")


def save(png: bytes, path: Path) -> None:
    """With 128 colours: a third of the bytes, and no difference to the eye."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
