"""How |S| grows with D in a corpus: counts from several starting places, and the exponent of each length."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_rtx.scaling.corpora import Corpus
from mlx_rtx.scaling.regression import Interval, across, exponent
from mlx_rtx.scaling.sequences import check, unique_sequences

import numpy as np

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024)


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
