"""Exact counts of unique sequences |S| in a corpus, for all lengths and sizes at once.

The D sequences of length l in a corpus are those that begin at its first D positions; they overlap. The sequence at
position p is new if none at an earlier position has the same l tokens, that is, if the longest match between the text
from p and the text from any earlier position, the *longest previous factor* of p, is shorter than l. These lengths are
computed with a suffix array, in a time that hardly depends on the text, and one pass over them counts all l and D.
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
    """Count |S| among the first D sequences of each length, for each D.

    Args:
        tokens: the corpus (n,), non-negative integers.
        lengths: l, at least 1.
        sizes: D, at least 1 and increasing.

    Returns:
        (lengths, sizes), int64.

    Raises:
        UserError: the corpus is empty, or has fewer than D sequences of some length.

    Example:
        >>> unique_sequences(np.array([0, 1, 0, 1, 0, 1]), [1, 2], [2, 4]).tolist()
        [[2, 2], [2, 2]]
    """
    check(len(tokens), lengths, sizes)
    longest, begin, counts = max(lengths), 0, np.zeros(max(lengths) + 1, np.int64)
    matches, columns = np.minimum(previous_factors(tokens), longest), []
    for size in sizes:
        counts += np.bincount(matches[begin:size], minlength=longest + 1)
        columns.append(np.cumsum(counts)[np.asarray(lengths) - 1])  # matches shorter than l
        begin = size
    return np.stack(columns, axis=1)


def check(tokens: int, lengths: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise UserError unless a corpus of ``tokens`` tokens has these lengths and sizes."""
    require(tokens > 0, "the corpus is empty")
    require(bool(len(lengths)) and min(lengths) >= 1, f"lengths={list(lengths)}: must be at least 1")
    rising = all(a < b for a, b in itertools.pairwise(sizes))
    require(bool(len(sizes)) and sizes[0] >= 1 and rising, f"sizes={list(sizes)}: must rise from 1 or above")
    longest, largest = max(lengths), max(sizes)
    require(longest <= tokens, f"length={longest}: the corpus has only {tokens:,} tokens")
    most = tokens - longest + 1
    require(largest <= most, f"size={largest}: a corpus of {tokens:,} tokens has {most:,} sequences of {longest}")


def previous_factors(tokens: np.ndarray) -> np.ndarray:
    """Return for each position the length of the longest match with the text from any earlier position (n,)."""
    try:
        from pydivsufsort import longest_previous_factor
    except ImportError:
        raise UserError("scaling: needs pydivsufsort; pip install 'mlx-rtx[scaling]'") from None
    require(tokens.min() >= 0 and tokens.max() < 2**31, "tokens: must lie in 0 … 2147483647")
    return longest_previous_factor(tokens.astype(np.uint8 if tokens.max() < 256 else np.int32))


def rising_sizes(most: int, decades: float = 4, per_decade: int = 4) -> list[int]:
    """Return sizes D, evenly spaced on a logarithmic scale over ``decades`` decades up to ``most``."""
    count = round(decades * per_decade) + 1
    sizes = np.unique(np.round(most / 10 ** np.linspace(decades, 0, count)).astype(int))
    return [int(size) for size in sizes if size >= 1]


@dataclass(frozen=True)
class Growth:
    """|S| as a function of D in one corpus."""

    name: str
    tokens: int
    symbols: int
    """Number of distinct tokens."""
    lengths: tuple[int, ...]
    sizes: list[int]
    counts: list[list[int]]
    """|S| counted from the beginning of the corpus, one row per length."""
    exponents: list[Interval]
    """Exponent of D in |S| over all sizes, for each length: mean over starting positions, and its interval."""
    first: list[float]
    """Exponent over the first decade of D, for each length."""
    last: list[float]
    """Exponent over the last decade of D, for each length."""

    def report(self) -> dict[str, Any]:
        """Return all fields as a dict that can be written as JSON."""
        return asdict(self) | {"exponents": [interval._asdict() for interval in self.exponents]}

    def within(self, low: float, high: float) -> list[int]:
        """Return the lengths whose exponents over all sizes, the first and the last decade are all in [low, high]."""
        found = zip(self.lengths, self.exponents, self.first, self.last, strict=True)
        return [n for n, (value, _, _), *ends in found if all(low <= one <= high for one in (value, *ends))]


def growth(corpus: Corpus, lengths: Sequence[int], sizes: Sequence[int], starts: int = 8) -> Growth:
    """Count ``corpus`` cyclically from ``starts`` evenly spaced positions.

    All counts use the same text, so that the interval shows the variation between parts of the text at small D only.
    """
    check(len(corpus.tokens), lengths, sizes)
    known, tokens = np.unique(corpus.tokens, return_inverse=True)  # renumbered from 0: fits into bytes if there are few
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
