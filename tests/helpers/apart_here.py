"""Import this, and a comparison's merges run in its own process: a new one for each imports torch again.

What a merge in a process of its own is, tests/commands/test_compare.py shows. An adaptation takes a few steps here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

from hfcart.commands import separate_process
from hfcart.commands.separate_process import Apart


def merge_here(fields: dict[str, Any], look: Callable[[], object] = lambda: None) -> Apart:
    """As `merge_apart`."""
    given = json.dumps(fields | ({"steps": 20} if "adapt" in fields else {}))
    with patch("sys.stdin", io.StringIO(given)), redirect_stdout(io.StringIO()) as told:
        separate_process.main()
    found = json.loads(told.getvalue())
    return Apart(**found | {"warnings": tuple(found["warnings"])})


separate_process.merge_apart = merge_here
