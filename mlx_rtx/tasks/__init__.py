"""Training tasks: each creates batches from random keys, and determines vocabulary, length and outputs of the model."""

from mlx_rtx.tasks.copying import CopyTask, SelectiveCopyTask
from mlx_rtx.tasks.image import ImageTask
from mlx_rtx.tasks.induction import InductionTask
from mlx_rtx.tasks.memorization import MemorizationTask
from mlx_rtx.tasks.mixture import MixtureTask
from mlx_rtx.tasks.mqar import MqarTask
from mlx_rtx.tasks.recall import RecallTask
from mlx_rtx.tasks.task import Batch, Data, Sequences, Shape, StoredTask, Task
from mlx_rtx.tasks.text import TextData, TextTask

__all__ = [
    "Batch",
    "CopyTask",
    "Data",
    "ImageTask",
    "InductionTask",
    "MemorizationTask",
    "MixtureTask",
    "MqarTask",
    "RecallTask",
    "SelectiveCopyTask",
    "Sequences",
    "Shape",
    "StoredTask",
    "Task",
    "TextData",
    "TextTask",
]
