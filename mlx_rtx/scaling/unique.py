"""Unique sequences |S| in a corpus, counted exactly for every length and size at once.

The D sequences of length l in a corpus are those that begin at its first D places; they overlap. The one at place p
is new if no earlier place begins with the same l tokens: if the longest match of what begins at p with what begins
anywhere before, the *longest previous factor* of p, is shorter than l. These come from a suffix array in a time that
hardly depends on the text, and one pass over them counts all l and D.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_rtx.scaling.corpora import Corpus
from mlx_rtx.scaling.regression import Interval, across, exponent
from mlx_rtx.support.errors import UserError, require

import numpy as np

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024)


def unique_sequences(tokens: np.ndarray, lengths: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """|S| of each length among the first D sequences, for each D.

    Args:
        tokens: the corpus (n,), integers from 0 on.
        lengths: l, at least 1.
        sizes: D, at least 1 and rising.

    Returns:
        (lengths, sizes), int64.

    Raises:
        UserError: the corpus is empty, or has no D sequences of some length.

    Example:
        >>> unique_sequences(np.array([0, 1, 0, 1, 0, 1]), [1, 2], [2, 4]).tolist()
        [[2, 2], [2, 2]]
    """
    check(len(tokens), lengths, sizes)
    longest, begin, counts = max(lengths), 0, np.zeros(max(lengths) + 1, np.int64)
    matches, columns = np.minimum(previous_factors(tokens), longest), []
    for size in sizes:
        counts += np.bincount(matches[begin:size], minlength=longest + 1)
        columns.append(np.cumsum(counts)[np.asarray(lengths) - 1])  # those whose match is shorter
        begin = size
    return np.stack(columns, axis=1)


def check(tokens: int, lengths: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse what cannot be counted in a corpus of so many tokens."""
    require(tokens > 0, "the corpus is empty")
    require(bool(len(lengths)) and min(lengths) >= 1, f"lengths={list(lengths)}: must be at least 1")
    rising = all(a < b for a, b in itertools.pairwise(sizes))
    require(bool(len(sizes)) and sizes[0] >= 1 and rising, f"sizes={list(sizes)}: must rise from 1 or above")
    longest, largest = max(lengths), max(sizes)
    require(longest <= tokens, f"length={longest}: the corpus has only {tokens:,} tokens")
    most = tokens - longest + 1
    require(largest <= most, f"size={largest}: a corpus of {tokens:,} tokens has {most:,} sequences of {longest}")


def previous_factors(tokens: np.ndarray) -> np.ndarray:
    """For each place, the length of the longest match of what begins there with what begins anywhere before it (n,)."""
    try:
        from pydivsufsort import longest_previous_factor
    except ImportError:
        raise UserError("scaling: needs pydivsufsort; pip install 'mlx-rtx[scaling]'") from None
    require(tokens.min() >= 0 and tokens.max() < 2**31, "tokens: must lie in 0 … 2147483647")
    return longest_previous_factor(tokens.astype(np.uint8 if tokens.max() < 256 else np.int32))


def rising_sizes(most: int, decades: float = 4, per_decade: int = 4) -> list[int]:
    """Sizes D, evenly spread on a logarithmic scale over some decades up to ``most``."""
    count = round(decades * per_decade) + 1
    sizes = np.unique(np.round(most / 10 ** np.linspace(decades, 0, count)).astype(int))
    return [int(size) for size in sizes if size >= 1]


@dataclass(frozen=True)
class Growth:
    """|S| over D in one corpus."""

    name: str
    tokens: int
    symbols: int
    """Different tokens."""
    lengths: tuple[int, ...]
    sizes: list[int]
    counts: list[list[int]]
    """|S| from the corpus's own beginning, a row a length."""
    exponents: list[Interval]
    """Of D in |S| over all sizes, one a length: the mean over starting places, and its interval."""
    first: list[float]
    """The same over the first decade of D."""
    last: list[float]
    """And over the last."""

    def report(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"exponents": [interval._asdict() for interval in self.exponents]}

    def within(self, low: float, high: float) -> list[int]:
        """The lengths whose exponent lies between two others, over all sizes, over the first decade and the last."""
        found = zip(self.lengths, self.exponents, self.first, self.last, strict=True)
        return [n for n, (value, _, _), *ends in found if all(low <= one <= high for one in (value, *ends))]


def growth(corpus: Corpus, lengths: Sequence[int], sizes: Sequence[int], starts: int = 8) -> Growth:
    """Count ``corpus`` read from ``starts`` places, evenly spread, each time to its end and on from its beginning.

    The readings share their text, so what the interval shows is how far D of them differ where D is small.
    """
    check(len(corpus.tokens), lengths, sizes)
    known, tokens = np.unique(corpus.tokens, return_inverse=True)  # from 0 on: bytes if there are few
    begins = [i * len(tokens) // starts for i in range(starts)]
    counts = np.stack([unique_sequences(np.roll(tokens, -begin), lengths, sizes) for begin in begins])
    early = [i for i, size in enumerate(sizes) if size <= 10.1 * sizes[0]]
    late = [i for i, size in enumerate(sizes) if 10.1 * size >= sizes[-1]]
    first, last = (exponent([sizes[i] for i in part], counts[..., part]).mean(axis=0) for part in (early, late))
    return Growth(
        corpus.name,
        len(tokens),
        len(known),
        tuple(lengths),
        list(sizes),
        counts[0].tolist(),
        [across(values) for values in exponent(sizes, counts).T],
        first.tolist(),
        last.tolist(),
    )
