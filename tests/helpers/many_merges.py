"""Several merges in one launch, by the function that every process calls: python many_merges.py OUT RECIPES_AS_JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hfcart
from hfcart.errors import HfcartError


def main() -> None:
    out = Path(sys.argv[1])
    for number, fields in enumerate(json.loads(sys.argv[2])):
        try:
            merged = hfcart.merge(**fields, out=out / str(number))
        except HfcartError as error:
            told = f"{type(error).__name__}: {error.message}"
        else:
            told = str(merged.folder)
        with (out / f"told-{number}").open("a") as file:
            file.write(told + "\n")


main()
