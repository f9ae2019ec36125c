"""What a model is trained on. A task makes batches from keys and says what shape of model reads them."""

from mlx_rtx.tasks.copying import CopyTask, SelectiveCopyTask
from mlx_rtx.tasks.task import Data, Sequences, StoredTask, Task

__all__ = ["CopyTask", "Data", "SelectiveCopyTask", "Sequences", "StoredTask", "Task"]
