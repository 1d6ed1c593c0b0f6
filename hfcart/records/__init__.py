"""The frozen records that travel between the floors, and the MergeRecord that is written as hfcart.json.

Nothing here computes, reads or talks to anything: plain data, plain types, no dates, no paths of the
machine that made it.
"""

from hfcart.records._adaptation import AdaptationRecord, AdaptedTask
from hfcart.records._format import RECORD_FORMAT
from hfcart.records._merge import MergeRecord, MethodRecord, Similarity, SourceData, TensorRecord
from hfcart.records._results import ClassScore, EarlierResults, EvalRecord, Reference, TaskResult
from hfcart.records._search import AdapterSweep, CompareRecord, CompareRow, SweepPoint, SweepRecord, Swept
from hfcart.records._selection import Selected, SelectionRecord
from hfcart.records._sources import (
    Architecture,
    CardFacts,
    DatasetRecord,
    Environment,
    FileRecord,
    FolderRecord,
    ImagesRecord,
    SourceRecord,
)
from hfcart.records._space import SpaceRecord, SpaceTask, SpaceTower
from hfcart.records._training import (
    FinetuneRecord,
    Look,
    TrainedTask,
    TrainingCurve,
    TrainingRecord,
    Validation,
)

__all__ = [
    "AdaptationRecord",
    "AdaptedTask",
    "AdapterSweep",
    "Architecture",
    "CardFacts",
    "ClassScore",
    "CompareRecord",
    "CompareRow",
    "DatasetRecord",
    "EarlierResults",
    "Environment",
    "EvalRecord",
    "FileRecord",
    "FinetuneRecord",
    "FolderRecord",
    "ImagesRecord",
    "Look",
    "MergeRecord",
    "MethodRecord",
    "RECORD_FORMAT",
    "Reference",
    "Selected",
    "SelectionRecord",
    "Similarity",
    "SourceData",
    "SourceRecord",
    "SpaceRecord",
    "SpaceTask",
    "SpaceTower",
    "SweepPoint",
    "SweepRecord",
    "Swept",
    "TaskResult",
    "TensorRecord",
    "TrainedTask",
    "TrainingCurve",
    "TrainingRecord",
    "Validation",
]
