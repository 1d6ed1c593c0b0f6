"""Several commands in one launch, then some by its first process alone: python many_commands.py SHARED ALONE, as JSON.

Ends with 1 if one of them did not end with 0.
"""

from __future__ import annotations

import json
import os
import sys

from hfcart.cli import main
from hfcart.system.processes import alone, is_first


def run(args: list[str]) -> bool:
    sys.argv = ["hfcart", *args]
    try:
        main()
    except SystemExit as end:
        return not end.code
    return True


shared, apart = map(json.loads, sys.argv[1:])
done = [run(args) for args in shared]
if is_first():
    environment = alone()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    done += [run(args) for args in apart]
sys.exit(not all(done))
