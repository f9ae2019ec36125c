"""Data parallelism: processes, called ranks, that train one model together, each on its share of every batch.

All have the same weights and take the same steps, for gradients are averaged over ranks, and whatever decides anything
is a number that all of them have. What one of them alone knows, that it was asked to stop or that it is time to save,
is a vote: it travels with the gradient, so that a step has one exchange, and is read a step later, when it has come.

n ranks do what one process does whose --batch is an nth and whose --accumulate is n times as large, to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.lifeline import Lifeline
from mlx_rtx.support.stopping import Stopped
from mlx_rtx.support.trees import flat
from mlx_rtx.training.gradient import Gradient

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map, tree_unflatten

VOTES = 2  # to stop, and to save
PIECE = 2**26  # bytes that are sent at once


class Ranks:
    """A training by one process: its share is all there is, and what it wants is agreed.

    Example:
        >>> Ranks().rows(8)
        slice(0, 8, None)
    """

    rank, size = 0, 1
    lifeline: Lifeline | None = None
    """What ends this rank when another is lost."""

    def __init__(self) -> None:
        self._wants_stop = self._wants_save = lambda: False
        self.remedy = "call again"
        """What helps when one of several is lost, for whoever says so."""

    def ask(self, stop: Callable[[], bool], save: Callable[[], bool]) -> None:
        """Have this rank's votes come from functions."""
        self._wants_stop, self._wants_save = stop, save

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def stop(self) -> bool:
        """Whether the ranks have agreed to stop."""
        return self._wants_stop()

    @property
    def save(self) -> bool:
        """Whether the ranks have agreed to save."""
        return self._wants_save()

    @property
    def described(self) -> dict[str, int]:
        """What a record of the run says of them: nothing of one."""
        return {"ranks": self.size} if self.size > 1 else {}

    def rows(self, count: int) -> slice:
        """Which of ``count`` rows are this rank's."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def part_keys(self, key: mx.array | None, parts: int) -> list[mx.array | None]:
        """Keys of this rank's parts of a step, of which each rank has as many; ``key`` itself where that is all."""
        total = parts * self.size
        if key is None or total == 1:
            return [key] * parts
        return list(mx.random.split(key, total)[self.rows(total)])

    def share(self, tree: Any) -> Any:
        """This rank's rows of arrays (B, …)."""
        return tree

    def whole(self, tree: Any) -> Any:
        """Arrays (B, …) of which each rank has its share."""
        return tree

    def average(self, gradient: Gradient) -> Gradient:
        """Loss and gradients as means over ranks; the carry stays this rank's own."""
        return gradient

    def heed(self) -> None:
        """Read the votes that came with the gradient before the last, for which nobody has to wait."""

    def forget(self) -> None:
        """Leave unread what was voted on before now: what was asked for is done."""

    def gather(self, own: mx.array, count: int) -> mx.array:
        """Sums (M, B) by row of which each rank has those of its `rows`.

        Raises:
            Stopped: it was agreed to stop.
        """
        return own

    def of_first(self, tree: Any) -> Any:
        """The first rank's float32 arrays, given a tree like it."""
        return tree

    def bytes_of_first(self, contents: list[bytes]) -> list[bytes]:
        """The first rank's bytes, given as many."""
        return contents

    @contextmanager
    def united(self) -> Iterator[None]:
        """Let a block in which any rank may fail fail on all: none waits for another, and one says why."""
        yield


class ManyRanks(Ranks):
    """One of several ranks.

    Args:
        group: how they reach each other.
    """

    def __init__(self, group: mx.distributed.Group):
        super().__init__()
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._agreed = [False] * VOTES
        self._cast: list[mx.array] = []  # votes that came with gradients and are still to be read

    @property
    def stop(self) -> bool:
        """Whether the ranks have agreed to stop."""
        return self._agreed[0]

    @property
    def save(self) -> bool:
        """Whether the ranks have agreed to save."""
        return self._agreed[1]

    def share(self, tree: Any) -> Any:
        """This rank's rows of arrays (B, …)."""
        return _each(lambda array: array[self.rows(len(array))], tree)

    def whole(self, tree: Any) -> Any:
        """Arrays (B, …) of which each rank has its share."""
        found = _each(lambda array: mx.distributed.all_gather(array, group=self.group), tree)
        mx.eval(found)  # exchanges must come in the same order on all ranks, whoever reads what they bring
        return found

    def average(self, gradient: Gradient) -> Gradient:
        """Loss and gradients as means over ranks, by one exchange of one vector."""
        names, arrays = zip(*flat(gradient.gradients).items(), strict=True)
        loss, votes, *means = self._sum([gradient.loss, self._votes(), *arrays], 1 / self.size)
        self._cast.append(votes)
        return Gradient(loss, tree_unflatten(list(zip(names, means, strict=True))), gradient.carry)

    def heed(self) -> None:
        """Read the votes that came with the gradient before the last, for which nobody has to wait."""
        while len(self._cast) > 1:
            self._count(self._cast.pop(0))

    def forget(self) -> None:
        """Leave unread what was voted on before now: what was asked for is done."""
        self._cast, self._agreed = [], [False] * VOTES

    def gather(self, own: mx.array, count: int) -> mx.array:
        """Sums (M, B) by row of which each rank has those of its `rows`.

        Raises:
            Stopped: it was agreed to stop.
        """
        at = self.rows(count)
        padded = mx.pad(own, [(0, 0), (at.start, count - at.stop)])
        found, votes = self._sum([padded, self._votes()])
        self._count(votes)
        if self.stop:
            raise Stopped
        return found

    def of_first(self, tree: Any) -> Any:
        """The first rank's float32 arrays, given a tree like it."""
        names, arrays = zip(*flat(tree).items(), strict=True)
        given = arrays if self.first else [mx.zeros_like(array) for array in arrays]
        found = self._sum(list(given))
        mx.eval(found)
        return tree_unflatten(list(zip(names, found, strict=True)))

    def bytes_of_first(self, contents: list[bytes]) -> list[bytes]:
        """The first rank's bytes, given as many."""
        given = contents if self.first else [b""] * len(contents)
        sizes = np.array(self._all_sum(mx.array([len(one) for one in given], mx.int64)))
        ends = np.cumsum(sizes)
        if not sizes.any():
            return given
        sent = np.frombuffer(b"".join(given), np.uint8) if self.first else np.zeros(ends[-1], np.uint8)
        pieces = (mx.array(sent[start : start + PIECE]) for start in range(0, len(sent), PIECE))
        came = b"".join(np.array(self._all_sum(piece)).tobytes() for piece in pieces)
        return [came[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    @contextmanager
    def united(self) -> Iterator[None]:
        """Let a block in which any rank may fail fail on all: none waits for another, and one says why."""
        failure: Exception | None = None
        try:
            yield
        except (UserError, OSError, MemoryError) as error:
            failure = error
        here = [float(failure is not None and rank == self.rank) for rank in range(self.size)]
        failed = np.flatnonzero(np.array(self._all_sum(mx.array(here))))
        if not len(failed):
            return
        if self.lifeline:
            self.lifeline.let_go()
        if failure is None or failed[0] != self.rank:
            raise SystemExit(2)
        raise failure if self.first or not isinstance(failure, UserError) else UserError(f"rank {self.rank}: {failure}")

    def _votes(self) -> mx.array:
        return mx.array([float(self._wants_stop()), float(self._wants_save())])

    def _count(self, votes: mx.array) -> None:
        self._agreed = [was or bool(vote) for was, vote in zip(self._agreed, np.array(votes), strict=True)]

    def _all_sum(self, array: mx.array) -> mx.array:
        return mx.distributed.all_sum(array, group=self.group)

    def _sum(self, arrays: list[mx.array], factor: float | None = None) -> list[mx.array]:
        """Sums of float32 arrays over ranks, perhaps times a factor, in one exchange."""
        joined = self._all_sum(mx.concatenate([array.reshape(-1) for array in arrays]))
        joined = joined if factor is None else joined * factor
        found, start = [], 0
        for array in arrays:
            found.append(joined[start : start + array.size].reshape(array.shape))
            start += array.size
        return found


def _each(change: Callable[[mx.array], mx.array], tree: Any) -> Any:
    """A tree with its arrays changed, and whatever else it holds as it is."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, mx.array) else leaf, tree)
