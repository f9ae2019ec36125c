"""Windows of a tokenized text by training step: drawn with replacement, each once per epoch, or consecutive."""

import contextlib
import functools
from typing import Literal

from mlx_rtx.support.errors import require
from mlx_rtx.support.randomness import step_key
from mlx_rtx.tasks.task import Batch

import mlx.core as mx
import numpy as np

Reading = Literal["drawn", "without_replacement", "contiguous"]
ON_DEVICE = 2**24  # tokens up to which a text is kept on the device; longer texts stay on the host


class Windows:
    """Windows of L tokens, with the token after each as its target.

    Args:
        tokens: (n,), the training text.
        length: L < n.
        reading: order of the windows.
    """

    def __init__(self, tokens: np.ndarray, length: int, reading: Reading = "drawn"):
        self.length, self.reading, self.count = length, reading, len(tokens)
        self.large = self.count > ON_DEVICE
        self._tokens = tokens if self.large else mx.array(tokens.astype(np.int32))
        self._cached_order = functools.lru_cache(1)(self._order)

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) at positions drawn with replacement, and the tokens after them (size, L)."""
        with self._host():
            return self._cut(self._places(self.count - self.length, size, key))

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the batch of a training step, determined by the run's seed and the step's number."""
        if self.reading == "drawn":
            return Batch(*self.draw(step_key(seed, step, "data"), size))
        with self._host():
            if self.reading == "contiguous":
                return self._contiguous(seed, step, size)
            return self._each_once(seed, step, size)

    def _each_once(self, seed: int, step: int, size: int) -> Batch:
        """Return the ``step``-th batch of non-overlapping windows in random order, each once per epoch."""
        L, usable = self.length, self.count - 1
        batches = usable // L // size
        require(batches >= 1, f"batch={size}: the text has fewer windows of {L}; use a smaller --batch")
        epoch, at = divmod(step, batches)
        windows, begin = self._cached_order(seed, epoch)
        return Batch(*self._cut(begin + self._long(L) * windows[at * size : (at + 1) * size, None]))

    def _order(self, seed: int, epoch: int) -> tuple[mx.array, mx.array]:
        """Return the order of the windows in an epoch, and the position of the first window."""
        L, usable = self.length, self.count - 1
        order, begin = mx.random.split(mx.random.split(mx.random.key(seed), epoch + 1)[epoch])
        found = mx.random.permutation(usable // L, key=order), mx.random.randint(0, usable % L + 1, key=begin)
        mx.eval(found)
        return found

    def _contiguous(self, seed: int, step: int, size: int) -> Batch:
        """Return the ``step``-th batch when ``size`` rows each read consecutive windows of their part of the text.

        At the end of an epoch the rows restart from a random offset.
        """
        usable, L = self.count - 1, self.length
        chunks = usable // (size * L)
        require(chunks >= 1, f"batch={size}: the text is too short for {size} rows of {L}; use a smaller --batch")
        epoch, chunk = divmod(step, chunks)
        spare = usable - size * chunks * L
        begin = mx.random.randint(0, spare + 1, key=mx.random.split(mx.random.key(seed), epoch + 1)[epoch])
        starts = begin + self._long(L) * (chunk + chunks * mx.arange(size)[:, None])
        return Batch(*self._cut(starts), continues=chunk > 0)

    def _host(self) -> contextlib.AbstractContextManager:
        """Return a context for computing positions: on the CPU for large texts, to avoid waiting for the device."""
        return mx.stream(mx.cpu) if self.large else contextlib.nullcontext()

    def _long(self, number: int) -> mx.array | int:
        """Return ``number`` as int64 for large texts, whose positions may exceed 32 bits."""
        return mx.array(number, mx.int64) if self.large else number

    def _places(self, count: int, size: int, key: mx.array) -> mx.array:
        """Draw positions (size, 1) uniformly from 0 … count - 1."""
        if not self.large:
            return mx.random.randint(0, count, (size, 1), key=key)
        place, *rest = mx.random.randint(0, 2**16, (4, size, 1), key=key).astype(mx.uint64)  # 24 random bits at most
        for word in rest:
            place = place * 2**16 + word
        return (place % mx.array(count, mx.uint64)).astype(mx.int64)

    def _cut(self, starts: mx.array) -> tuple[mx.array, mx.array]:
        places = starts + mx.arange(self.length)
        if isinstance(self._tokens, mx.array):
            return self._tokens[places], self._tokens[places + 1]
        rows = self._tokens[np.array(starts) + np.arange(self.length + 1)].astype(np.int32)
        return mx.array(rows[:, :-1]), mx.array(rows[:, 1:])
