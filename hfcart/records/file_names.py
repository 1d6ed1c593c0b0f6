"""What the files of records are called."""

from __future__ import annotations

RECORD = "hfcart.json"  # of a merge or a fine-tuning
MAX_RECORD = 50_000_000  # bytes of it
SWEEP_RECORD = "sweep.json"
COMPARE_RECORD = "compare.json"
SPACE_RECORD = "space.json"
AVERAGE = "average"  # the folder of a Space that holds that tower
RECORDS = (RECORD, SWEEP_RECORD, COMPARE_RECORD, SPACE_RECORD)
"""By any of them hfcart knows a folder that it made: --overwrite replaces one of any kind by another."""
