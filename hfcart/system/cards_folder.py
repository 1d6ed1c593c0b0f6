"""Where the cards are: the words a user may edit without touching Python."""

from __future__ import annotations

from pathlib import Path


def cards_dir() -> Path:
    """The folder of cards: beside the package in a checkout, inside the package in an installed wheel.

    An editable install leaves a copy of the cards in site-packages that goes stale: a checkout's own come first.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "cards").is_dir():
        return checkout / "cards"
    return package / "cards"
