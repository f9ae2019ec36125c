"""Corpora for counting unique sequences: texts by character and by word, and synthetic corpora of known diversity."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.tasks import text_file
from mlx_rtx.tasks.vocabulary import Characters

import numpy as np


class Corpus(NamedTuple):
    """Named tokens (n,)."""

    name: str
    tokens: np.ndarray


def of_text(path: Path) -> list[Corpus]:
    """Return a UTF-8 text as two corpora: by character, and by word, separated at white space.

    Raises:
        UserError: the text cannot be read, or has no words.
    """
    text, file = text_file.load(str(path), "TEXT")
    words = text.split()
    require(bool(words), f"{file}: the corpus is empty")
    by_word = np.unique(np.array(words), return_inverse=True)[1]
    return [
        Corpus(f"{file.stem}, characters", Characters(text).encode(text)),
        Corpus(f"{file.stem}, words", by_word.astype(np.int32)),
    ]


def zipf(size: int, exponent: float, offset: float, ranks: int = 10_000_000, seed: int = 0) -> np.ndarray:
    """Draw ``size`` independent ranks r in 1 … ``ranks`` with probability ∝ 1/(r + offset)^exponent."""
    sums = np.cumsum(zipf_weights(exponent, offset, ranks))
    drawn = np.searchsorted(sums, np.random.default_rng(seed).random(size) * sums[-1], side="right")
    return np.minimum(drawn, ranks - 1).astype(np.int32)


def zipf_weights(exponent: float, offset: float, ranks: int) -> np.ndarray:
    """Return the unnormalized probabilities of ranks 1 … ``ranks`` (ranks,)."""
    return (np.arange(1, ranks + 1) + offset) ** -exponent


def markov(size: int, states: int = 1000, choices: int = 2, seed: int = 0) -> np.ndarray:
    """Return a Markov chain in which each state is followed by one of ``choices`` states with equal probability.

    It has at most states · choices^(l - 1) distinct sequences of length l.
    """
    random = np.random.default_rng(seed)
    following = np.stack([random.choice(states, choices, replace=False) for _ in range(states)]).tolist()
    picked = random.integers(0, choices, size).tolist()
    tokens, state = [], 0
    for choice in picked:
        state = following[state][choice]
        tokens.append(state)
    return np.array(tokens, np.int32)


def copies(size: int, period: int = 10_000, symbols: int = 64, seed: int = 0) -> np.ndarray:
    """Repeat one random piece of ``period`` tokens: at most ``period`` distinct sequences of any length."""
    return np.resize(np.random.default_rng(seed).integers(0, symbols, period, np.int32), size)


def repeated(size: int, period: int = 1000, fresh: float = 0.1, symbols: int = 64, seed: int = 0) -> np.ndarray:
    """Concatenate pieces of ``period`` tokens: with probability ``fresh`` a new one, else a copy of an earlier one."""
    random = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    for _ in range(-(-size // period)):
        new = not pieces or random.random() < fresh
        pieces.append(random.integers(0, symbols, period, np.int32) if new else pieces[random.integers(len(pieces))])
    return np.concatenate(pieces)[:size]


MADE: dict[str, Callable[[int], np.ndarray]] = {
    "Zipf 1, offset 2.7": lambda size: zipf(size, 1.0, 2.7),
    "Zipf 1.4, offset 2.7": lambda size: zipf(size, 1.4, 2.7),
    "Zipf 2.3, offset 2.7": lambda size: zipf(size, 2.3, 2.7),
    "Markov, 1,000 states, 2 choices": markov,
    "copies of one piece": copies,
    "copies, a tenth fresh": repeated,
}


def expected_unique(weights: np.ndarray, size: int) -> float:
    """Return the expected number of distinct values in ``size`` independent draws: Σ 1 - (1 - p)^D."""
    shares = weights / weights.sum()
    return float(-np.expm1(size * np.log1p(-shares)).sum())
