"""What a model is trained on. A task makes batches from keys and says what shape of model reads them."""

from typing import Protocol

import mlx.core as mx

from mlx_rtx.tasks.copying import CopyTask, SelectiveCopyTask


class Task(Protocol):
    """What training and evaluation need of a task."""

    @property
    def vocab_size(self) -> int:
        """Input vocabulary V."""
        ...

    @property
    def length(self) -> int:
        """Length L of a sequence in tokens."""
        ...

    @property
    def chance(self) -> float:
        """Loss in nats of a model that knows the classes and nothing else."""
        ...

    def batch(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Tokens (size, L) and the targets (size, n) of their last n positions, fixed by ``key``."""
        ...


__all__ = ["CopyTask", "SelectiveCopyTask", "Task"]
