"""What the Hub finds wrong with a model card."""

from __future__ import annotations

import json

from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from hfcart.hub._calls import call
from hfcart.system.addresses import without_queries


def validate_card(text: str) -> list[str]:
    """Ask the Hub whether it accepts a model card, as it stands (the client's own check writes the YAML anew).

    Returns:
        What it finds wrong; nothing for a good card.

    Raises:
        HubError: the Hub cannot be asked.
    """

    def ask() -> list[str]:
        body = {"content": text, "repoType": "model"}
        url = f"{constants.ENDPOINT}/api/validate-yaml"
        response = get_session().post(url, json=body, headers=build_hf_headers(library_name="hfcart"))
        if response.status_code == 400:
            return _complaints(response.text)
        hf_raise_for_status(response)
        return []

    return call("Checking the model card", ask)


def _complaints(answer: str) -> list[str]:
    try:
        return [plain(str(entry["message"])) for entry in json.loads(answer)["errors"]]
    except (ValueError, KeyError, TypeError):
        return [plain(answer)]


def plain(text: str) -> str:
    """What the Hub says, as one line of at most 500 characters, without the queries of addresses."""
    return without_queries("".join(c if c.isprintable() else " " for c in text[:500])).strip()
