"""Data parallelism: several processes, called ranks, train one model, each on its share of every batch.

All ranks have the same weights and take the same steps: gradients are averaged over ranks by an all-reduce, and every
decision depends only on numbers that all ranks have. Information of a single rank (a stop request, or that a checkpoint
is due) is sent as a vote in the all-reduce of the gradient, so that a step has only one, and is read a step later, when
the result has arrived.

Up to rounding error, n ranks equal one process with 1/n of the --batch and n times the --accumulate.
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
PIECE = 2**26  # bytes per message


class Ranks:
    """A training in a single process: its share is the whole batch, and its votes decide.

    Example:
        >>> Ranks().rows(8)
        slice(0, 8, None)
    """

    rank, size = 0, 1
    lifeline: Lifeline | None = None
    """Ends this rank when another is lost; None with a single process."""

    def __init__(self) -> None:
        self._wants_stop = self._wants_save = lambda: False
        self.remedy = "call again"
        """Remedy to name in the message when a rank is lost."""

    def set_votes(self, stop: Callable[[], bool], save: Callable[[], bool]) -> None:
        """Set the functions that return this rank's votes."""
        self._wants_stop, self._wants_save = stop, save

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
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
        """Entries for the record of a run's environment; empty with a single process."""
        return {"ranks": self.size} if self.size > 1 else {}

    def rows(self, count: int) -> slice:
        """Return which of ``count`` rows belong to this rank."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def part_keys(self, key: mx.array | None, parts: int) -> list[mx.array | None]:
        """Return random keys for this rank's ``parts`` parts of a step; ``key`` itself if there is one part in all."""
        total = parts * self.size
        if key is None or total == 1:
            return [key] * parts
        return list(mx.random.split(key, total)[self.rows(total)])

    def own_rows(self, tree: Any) -> Any:
        """Return this rank's rows of arrays (B, …)."""
        return tree

    def all_rows(self, tree: Any) -> Any:
        """Return the arrays (B, …) of all ranks, given this rank's share of their rows (an all-gather)."""
        return tree

    def average(self, gradient: Gradient) -> Gradient:
        """Return loss and gradients averaged over ranks, with this rank's own carry."""
        return gradient

    def read_votes(self) -> None:
        """Read the votes sent with all gradients but the last, which have already arrived."""

    def discard_votes(self) -> None:
        """Discard all votes so far, because they have been acted on."""

    def gather(self, own: mx.array, count: int) -> mx.array:
        """Return sums (M, B) over all ``count`` = B rows, given those of this rank's `rows`.

        Raises:
            Stopped: the ranks have agreed to stop.
        """
        return own

    def broadcast(self, tree: Any) -> Any:
        """Return the first rank's tree of float32 arrays, given a tree of the same structure."""
        return tree

    def broadcast_bytes(self, contents: list[bytes]) -> list[bytes]:
        """Return the first rank's byte strings, given a list of the same length."""
        return contents

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Return a context that ends on all ranks if it fails on any; one of the failing ranks reports its error."""
        yield


class ManyRanks(Ranks):
    """One of several ranks.

    Args:
        group: MLX's communication group.
    """

    def __init__(self, group: mx.distributed.Group):
        super().__init__()
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._agreed = [False] * VOTES
        self._cast: list[mx.array] = []  # votes sent with gradients, not read yet

    @property
    def stop(self) -> bool:
        """Whether the ranks have agreed to stop."""
        return self._agreed[0]

    @property
    def save(self) -> bool:
        """Whether the ranks have agreed to save."""
        return self._agreed[1]

    def own_rows(self, tree: Any) -> Any:
        """Return this rank's rows of arrays (B, …)."""
        return _each(lambda array: array[self.rows(len(array))], tree)

    def all_rows(self, tree: Any) -> Any:
        """Return the arrays (B, …) of all ranks, given this rank's share of their rows (an all-gather)."""
        found = _each(lambda array: mx.distributed.all_gather(array, group=self.group), tree)
        mx.eval(found)  # collectives must run in the same order on all ranks, even if the result is not used
        return found

    def average(self, gradient: Gradient) -> Gradient:
        """Return loss and gradients averaged over ranks with one all-reduce, and this rank's own carry."""
        names, arrays = zip(*flat(gradient.gradients).items(), strict=True)
        loss, votes, *means = self._sum([gradient.loss, self._votes(), *arrays], 1 / self.size)
        self._cast.append(votes)
        return Gradient(loss, tree_unflatten(list(zip(names, means, strict=True))), gradient.carry)

    def read_votes(self) -> None:
        """Read the votes sent with all gradients but the last, which have already arrived."""
        while len(self._cast) > 1:
            self._count(self._cast.pop(0))

    def discard_votes(self) -> None:
        """Discard all votes so far, because they have been acted on."""
        self._cast, self._agreed = [], [False] * VOTES

    def gather(self, own: mx.array, count: int) -> mx.array:
        """Return sums (M, B) over all ``count`` = B rows, given those of this rank's `rows`.

        Raises:
            Stopped: the ranks have agreed to stop.
        """
        at = self.rows(count)
        padded = mx.pad(own, [(0, 0), (at.start, count - at.stop)])
        found, votes = self._sum([padded, self._votes()])
        self._count(votes)
        if self.stop:
            raise Stopped
        return found

    def broadcast(self, tree: Any) -> Any:
        """Return the first rank's tree of float32 arrays, given a tree of the same structure."""
        names, arrays = zip(*flat(tree).items(), strict=True)
        given = arrays if self.first else [mx.zeros_like(array) for array in arrays]
        found = self._sum(list(given))
        mx.eval(found)
        return tree_unflatten(list(zip(names, found, strict=True)))

    def broadcast_bytes(self, contents: list[bytes]) -> list[bytes]:
        """Return the first rank's byte strings, given a list of the same length."""
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
    def fail_together(self) -> Iterator[None]:
        """Return a context that ends on all ranks if it fails on any; one of the failing ranks reports its error."""
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
        """Return the sums of float32 arrays over ranks, times an optional factor, with one all-reduce."""
        joined = self._all_sum(mx.concatenate([array.reshape(-1) for array in arrays]))
        joined = joined if factor is None else joined * factor
        found, start = [], 0
        for array in arrays:
            found.append(joined[start : start + array.size].reshape(array.shape))
            start += array.size
        return found


def _each(change: Callable[[mx.array], mx.array], tree: Any) -> Any:
    """Apply ``change`` to the arrays of a tree, and leave other leaves unchanged."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, mx.array) else leaf, tree)
