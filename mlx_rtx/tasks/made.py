"""Tasks whose sequences are made from a key when they are asked for, on the device, and kept nowhere."""

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
class MadeTask(Task, Data):
    """A task that is its own data. One that makes whole batches has `make`; of a long one `sequences` may be lazy."""

    splits = ("fresh",)

    @property
    def shape(self) -> Shape:
        """What its sequences look like."""
        return Shape(self.vocab_size, self.length, self.targets, self.out_size)

    def load(self, vocabulary: Vocabulary | None = None) -> Self:
        """The task itself: its sequences are made, not read."""
        return self

    def at_stage(self, stage: dict[str, int]) -> Self:
        """The same task with what a curriculum has raised."""
        return self if stage == self.stage else replace(self, **stage)

    def describe(self) -> dict:
        """Length, and where a curriculum stands."""
        return {**self.stage, "length": self.length}

    @abstractmethod
    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Tokens (size, L) and targets (size, n), int32, fixed by ``key``."""

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Tokens (size, L) and the targets (size, n) of their last n positions, fixed by ``key``."""
        check_draw(key, size)
        return self.make(key, size)

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Fresh sequences."""
        if samples is None:
            raise UserError("samples=None: fresh sequences have no end; give a number, e.g. 256")
        require_whole(samples=samples, batch=batch)
        check_key(key)
        for start, part in zip(range(0, samples, batch), mx.random.split(key, -(-samples // batch)), strict=True):
            yield self.sequences(part, min(batch, samples - start))

    def sequences(self, key: mx.array, size: int) -> Sequences:
        """So many sequences to score."""
        tokens, targets = self.make(key, size)
        return Sequences(self.length, lambda start, end: tokens[:, start:end], targets, masked=self.masked)


def distinct(key: mx.array, size: int, count: int, n: int) -> mx.array:
    """``n`` different ones of 0 … count - 1 in random order, (size, n), each order as likely as any other."""
    return mx.argsort(mx.random.uniform(shape=(size, count), key=key), axis=1)[:, :n].astype(mx.int32)


def nothing_asked(size: int, n: int) -> mx.array:
    """Targets (size, n) that are all `IGNORED`."""
    return mx.full((size, n), IGNORED, dtype=mx.int32)
