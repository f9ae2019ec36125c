"""Unique sequences |S| in a corpus, counted exactly for every length and size at once.

The D sequences of length l in a corpus are those that begin at its first D places; they overlap. The one at place p
is new if no earlier place begins with the same l tokens: if the longest match of what begins at p with what begins
anywhere before, the *longest previous factor* of p, is shorter than l. These come from a suffix array in a time that
hardly depends on the text, and one pass over them counts all l and D.
"""

import itertools
from collections.abc import Sequence

from mlx_rtx.support.errors import UserError, require

import numpy as np


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
