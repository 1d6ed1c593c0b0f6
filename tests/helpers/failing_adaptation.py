"""A merge that adapts, of which one process fails at its first step: python failing_adaptation.py PLACE COMMAND...

The process that tells how it ended says so in a line of its own.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hfcart.cli import main
from hfcart.errors import SourceError
from hfcart.learning.adapt.loop import _Learning
from hfcart.system import processes

place = int(sys.argv[1])
sys.argv = ["hfcart", *sys.argv[2:]]
run, error = _Learning.run, processes.may_tell


def failing(self: Any) -> None:
    if int(os.environ["RANK"]) == place:
        raise SourceError("An image is gone.")
    run(self)


_Learning.run = failing  # type: ignore[method-assign]
try:
    main()
finally:
    if processes._telling:
        print(f"told by {os.environ['RANK']}", file=sys.__stderr__, flush=True)
