"""What training and evaluation need of a task, and nothing about any one task."""

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
    """A batch of sequences to score; a long one need never be in memory as a whole."""

    length: int  # L
    read_tokens: Callable[[int, int], mx.array]  # tokens (B, end - start) of positions start … end
    targets: mx.array  # (B, n), classes of the last n positions
    sizes: np.ndarray | None = None  # (B,), bytes of text in UTF-8 that a row's targets stand for, if they do
    masked: bool = False  # some targets are IGNORED

    def rows(self, which: slice) -> "Sequences":
        """Some of the sequences."""
        read, sizes = self.read_tokens, self.sizes
        return self._replace(
            read_tokens=lambda start, end: read(start, end)[which],
            targets=self.targets[which],
            sizes=None if sizes is None else sizes[which],
        )


def columns(rows: np.ndarray, start: int, end: int) -> mx.array:
    """Tokens at positions start … end of sequences (B, L) in memory, as `Sequences.read_tokens` gives them."""
    return mx.array(rows[:, start:end].astype(np.int32))


def check_draw(key: mx.array, size: int) -> None:
    """Refuse what is no key, or no number of sequences to draw."""
    check_key(key)
    require_whole(size=size)


def check_step(seed: int, step: int, size: int) -> None:
    """Refuse what is no step of a training; arguments as of `Data.batch`."""
    require_whole(least=0, seed=seed, step=step)
    require_whole(size=size)
    require(max(seed, step) < 2**32, f"seed={shown(seed)}, step={shown(step)}: must be below {2**32:,}")


def check_held_out(data: "Data", split: str, samples: int | None, batch: int) -> None:
    """Refuse what there is nothing of to score; arguments as of `Data.held_out`."""
    require(split in data.splits, f"split={split!r}: must be one of {', '.join(data.splits)}")
    require_whole(batch=batch, **({} if samples is None else {"samples": samples}))


class Shape(NamedTuple):
    """What the sequences of a task look like, which is known before its data is."""

    vocab_size: int  # V
    length: int  # L
    targets: int  # n: the last n positions are read
    out_size: int | None = None  # classes; the vocabulary if None


class Batch(NamedTuple):
    """What one training step reads."""

    tokens: mx.array  # (B, L)
    targets: mx.array  # (B, n), classes of the last n positions
    continues: bool = False  # sequences go on where those of the step before ended, row by row, with their state


class Data(ABC):
    """Sequences of a task, ready to be drawn."""

    metrics: tuple[str, ...] = ("loss", "accuracy")
    """Scores that mean something here, for people; see `mlx_rtx.training.evaluation.Scores`."""
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    """Held-out sequences there are; the last one is what a finished model is judged by."""
    long_range: ClassVar[bool] = True
    """Whether the task cannot be done without remembering over many blocks."""
    masked: ClassVar[bool] = False
    """Whether some targets are `IGNORED`: nothing is asked there, and loss and accuracy are of the others."""
    out_size: ClassVar[int | None] = None
    """Classes of the targets; the vocabulary if None."""
    fingerprint: str | None = None
    """sha256 of the data; None where it is made, not read."""
    vocabulary: Vocabulary | None = None
    """Characters or subwords that the tokens stand for, if they do."""
    stateful: bool = False
    """Whether batches may continue: a sequence then has no end, and its last block keeps Eq. 6."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Input vocabulary V."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Length L of a training sequence in tokens."""

    @property
    def targets(self) -> int:
        """The last n positions of a training sequence, which have targets; all by default."""
        return self.length

    @property
    @abstractmethod
    def chance(self) -> float:
        """Loss in nats of a model that knows the classes and nothing else."""

    @property
    def stage(self) -> dict[str, int]:
        """What a curriculum raises, and where it stands here, such as ``{"noise": 4096}``; empty without stages."""
        return {}

    def at_stage(self, stage: dict[str, int]) -> "Data":
        """The data of another stage."""
        return self

    @abstractmethod
    def describe(self) -> dict:
        """What there is, in short, for people and for the run's ``config.json``."""

    @abstractmethod
    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Tokens (size, L) and the targets (size, n) of their last n positions, fixed by ``key``."""

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The batch of a training step, fixed by the run's seed and the step's number; freshly drawn by default."""
        check_step(seed, step, size)
        return Batch(*self.draw(step_key(seed, step, "data"), size))

    @abstractmethod
    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Sequences of a split, ``batch`` at a time.

        Args:
            split: one of ``splits``.
            samples: how many sequences; None for all there are.
            batch: sequences at a time; a different one may give other sequences.
            key: fixes them where they are drawn.
        """

    def illustrate(self, write: Callable[[str, int], str]) -> str | None:
        """Something to look at of what a model does, if the task has it.

        Args:
            write: has the model write after a prompt, so many tokens.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Settings of a task."""

    summary: ClassVar[str]
    """The task in one line, for help."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """What its sequences look like."""

    @abstractmethod
    def load(self, vocabulary: Vocabulary | None = None) -> Data:
        """Get the data and check it.

        Args:
            vocabulary: what a model's tokens stand for; None for what the task says. Of text only.

        Raises:
            UserError: it is missing, or not what it should be.
        """

    def settled(self) -> "Task":
        """The same settings, to be read from any folder."""
        return self

    def check_model(self, kind: ModelKind, architecture: Architecture) -> None:  # noqa: B027 (most tasks take any)
        """Refuse a model that cannot be trained on this task.

        Raises:
            UserError: one line that says why, and what to do.
        """

    def advise(self, kind: ModelKind, architecture: Architecture) -> Iterator[str]:
        """Advice on a model that can be trained, but not well, a line each."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class StoredTask(Task):
    """Settings of a task whose data lies somewhere."""

    data: str | None = None
    """File or folder of the data; if not given, the one that MLX_RTX_DATA names, else it is downloaded."""

    def settled(self) -> "StoredTask":
        """The same with an absolute path to the data."""
        return replace(self, data=self.data and absolute(self.data))
