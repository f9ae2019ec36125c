"""What a model is trained on. A task makes batches from keys and says what shape of model reads them."""

from mlx_rtx.tasks.copying import CopyTask, SelectiveCopyTask
from mlx_rtx.tasks.image import ImageTask
from mlx_rtx.tasks.task import Batch, Data, Sequences, Shape, StoredTask, Task
from mlx_rtx.tasks.text import TextData, TextTask

__all__ = [
    "Batch",
    "CopyTask",
    "Data",
    "ImageTask",
    "SelectiveCopyTask",
    "Sequences",
    "Shape",
    "StoredTask",
    "Task",
    "TextData",
    "TextTask",
]
