"""Synthetic tasks: sequences are generated on the device from random keys, and not stored."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.inputs import IGNORED, check_key
from mlx_rtx.support.typed import require_whole
from mlx_rtx.tasks.task import Data, Sequences, Shape, Task, check_draw
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class SyntheticTask(Task, Data):
    """A synthetic task, which is its own data.

    Subclasses implement `make`; those with long sequences may override `sequences` to generate them piece by piece.
    """

    splits = ("fresh",)

    @property
    def shape(self) -> Shape:
        """Shape of the sequences."""
        return Shape(self.vocab_size, self.length, self.targets, self.out_size)

    def load(self, vocabulary: Vocabulary | None = None) -> Self:
        """Return the task itself."""
        return self

    def at_stage(self, stage: dict[str, int]) -> Self:
        """Return the task with the parameters of another stage."""
        return self if stage == self.stage else replace(self, **stage)

    def describe(self) -> dict:
        """Return the stage and the length."""
        return {**self.stage, "length": self.length}

    @abstractmethod
    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, n), int32, determined by ``key``."""

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and the targets (size, n) of their last n positions, determined by ``key``."""
        check_draw(key, size)
        return self.make(key, size)

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Yield ``samples`` fresh sequences, ``batch`` at a time."""
        if samples is None:
            raise UserError("samples=None: fresh sequences are unlimited; give a number, e.g. 256")
        require_whole(samples=samples, batch=batch)
        check_key(key)
        for start, part in zip(range(0, samples, batch), mx.random.split(key, -(-samples // batch)), strict=True):
            yield self.sequences(part, min(batch, samples - start))

    def sequences(self, key: mx.array, size: int) -> Sequences:
        """Return ``size`` sequences to score."""
        tokens, targets = self.make(key, size)
        return Sequences(self.length, lambda start, end: tokens[:, start:end], targets, masked=self.masked)


def distinct(key: mx.array, size: int, count: int, n: int) -> mx.array:
    """Draw ``n`` distinct numbers of 0 … count - 1 in uniformly random order, for ``size`` rows: (size, n)."""
    return mx.argsort(mx.random.uniform(shape=(size, count), key=key), axis=1)[:, :n].astype(mx.int32)


def ignored_targets(size: int, n: int) -> mx.array:
    """Return targets (size, n) that are all `IGNORED`."""
    return mx.full((size, n), IGNORED, dtype=mx.int32)
