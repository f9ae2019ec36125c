"""Interface between tasks and training or evaluation: `Task` (settings) and `Data` (sequences)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from mlx_rtx.model.config import Architecture, ModelKind
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import check_key
from mlx_rtx.support.randomness import step_key
from mlx_rtx.support.typed import require_whole, shown
from mlx_rtx.tasks.sources import absolute
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx
import numpy as np


class Sequences(NamedTuple):
    """A batch of sequences to score, whose tokens are read piece by piece."""

    length: int  # L
    read_tokens: Callable[[int, int], mx.array]  # (start, end) → tokens (B, end - start) of positions start … end - 1
    targets: mx.array  # (B, n), classes of the last n positions
    sizes: np.ndarray | None = None  # (B,), UTF-8 bytes of the text that a row's targets encode; None if not text
    masked: bool = False  # some targets are IGNORED

    def rows(self, which: slice) -> "Sequences":
        """Return a slice of the batch."""
        read, sizes = self.read_tokens, self.sizes
        return self._replace(
            read_tokens=lambda start, end: read(start, end)[which],
            targets=self.targets[which],
            sizes=None if sizes is None else sizes[which],
        )


def columns(rows: np.ndarray, start: int, end: int) -> mx.array:
    """Return columns start … end - 1 of token sequences (B, L) in memory, for `Sequences.read_tokens`."""
    return mx.array(rows[:, start:end].astype(np.int32))


def check_draw(key: mx.array, size: int) -> None:
    """Raise UserError unless ``key`` is a random key and ``size`` a positive integer."""
    check_key(key)
    require_whole(size=size)


def check_step(seed: int, step: int, size: int) -> None:
    """Raise UserError unless these are valid arguments of `Data.batch`."""
    require_whole(least=0, seed=seed, step=step)
    require_whole(size=size)
    require(max(seed, step) < 2**32, f"seed={shown(seed)}, step={shown(step)}: must be below {2**32:,}")


def check_held_out(data: "Data", split: str, samples: int | None, batch: int) -> None:
    """Raise UserError unless these are valid arguments of `Data.held_out`."""
    require(split in data.splits, f"split={split!r}: must be one of {', '.join(data.splits)}")
    require_whole(batch=batch, **({} if samples is None else {"samples": samples}))


class Shape(NamedTuple):
    """Shape of a task's sequences, known before its data is loaded."""

    vocab_size: int  # V
    length: int  # L
    targets: int  # n: the last n positions have targets
    out_size: int | None = None  # number of classes; None: V


class Batch(NamedTuple):
    """The batch of one training step."""

    tokens: mx.array  # (B, L)
    targets: mx.array  # (B, n), classes of the last n positions
    continues: bool = False  # each row continues the same row of the previous step, with its state


class Data(ABC):
    """Loaded data of a task: training batches and held-out sequences."""

    metrics: tuple[str, ...] = ("loss", "accuracy")
    """Scores to print for this task; see `mlx_rtx.training.evaluation.Scores`."""
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    """Names of the held-out splits; the last is the default of `evaluate`."""
    long_range: ClassVar[bool] = True
    """Whether the task requires memory over many blocks."""
    masked: ClassVar[bool] = False
    """Whether some targets are `IGNORED`; loss and accuracy are then over the other targets."""
    out_size: ClassVar[int | None] = None
    """Number of classes of the targets; None: the vocabulary size."""
    fingerprint: str | None = None
    """sha256 of the data; None for synthetic data."""
    vocabulary: Vocabulary | None = None
    """Characters or subwords that the tokens stand for; None if they are not text."""
    stateful: bool = False
    """Whether batches may continue the previous ones; sequences then have no end, so that Eq. 6 applies to their last
    block instead of Eq. 7."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Vocabulary size V of the input."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Length L of a training sequence in tokens."""

    @property
    def targets(self) -> int:
        """Number n of final positions of a training sequence that have targets; by default all."""
        return self.length

    @property
    @abstractmethod
    def chance(self) -> float:
        """Loss of guessing uniformly among the classes, in nats."""

    @property
    def stage(self) -> dict[str, int]:
        """Current values of the parameters that a curriculum increases, e.g. ``{"noise": 4096}``; empty without any."""
        return {}

    def at_stage(self, stage: dict[str, int]) -> "Data":
        """Return the data of another stage."""
        return self

    @abstractmethod
    def describe(self) -> dict:
        """Return a short description, for messages and for the run's ``config.json``."""

    @abstractmethod
    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and the targets (size, n) of their last n positions, determined by ``key``."""

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the batch of a training step, determined by the run's seed and the step; by default from `draw`."""
        check_step(seed, step, size)
        return Batch(*self.draw(step_key(seed, step, "data"), size))

    @abstractmethod
    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Yield the sequences of a split, ``batch`` at a time.

        Args:
            split: one of ``splits``.
            samples: number of sequences; None for all.
            batch: number of sequences at a time; the sequences drawn may depend on it.
            key: random key, for sequences that are drawn.
        """

    def illustrate(self, write: Callable[[str, int], str]) -> str | None:
        """Return a sample of the model's output to print after a validation, None if the task has none.

        Args:
            write: function that returns text generated by the model, given a prompt and a number of tokens.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Settings of a task."""

    summary: ClassVar[str]
    """One-line description for ``--help``."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Shape of the sequences."""

    @abstractmethod
    def load(self, vocabulary: Vocabulary | None = None) -> Data:
        """Load and check the data.

        Args:
            vocabulary: for text, the vocabulary of an existing model; None: as the task's settings say.

        Raises:
            UserError: the data is missing or invalid.
        """

    def with_absolute_paths(self) -> "Task":
        """Return the settings with absolute paths."""
        return self

    def check_model(self, kind: ModelKind, architecture: Architecture) -> None:  # noqa: B027 (most tasks take any)
        """Check that a model can be trained on this task.

        Raises:
            UserError: it cannot; the message gives reason and remedy.
        """

    def advise(self, kind: ModelKind, architecture: Architecture) -> Iterator[str]:
        """Yield lines of advice about a model that can be trained, but not well."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class StoredTask(Task):
    """Settings of a task that reads its data from files."""

    data: str | None = None
    """File or folder of the data; None: that of the environment variable MLX_RTX_DATA, else it is downloaded."""

    def with_absolute_paths(self) -> "StoredTask":
        """Return the settings with an absolute path to the data."""
        return replace(self, data=self.data and absolute(self.data))
