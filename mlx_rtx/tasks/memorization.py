"""Memorization: each key has a fixed value, the same in every sequence, which the model must store in its weights.

After Poli et al., *MAD* ([arXiv 2403.17844](https://arxiv.org/abs/2403.17844)). Vocabulary V: keys 0 … V/2-2, values
V/2-1 … V-2, marker V-1 (V even; one value is never used). A sequence consists of uniformly drawn keys, each followed by
the marker, where the target is the key's value. The values do not occur in the input; training and held-out sequences
use the same mapping.
"""

import math
from dataclasses import dataclass

from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks.synthetic import SyntheticTask

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class MemorizationTask(SyntheticTask):
    """Output the memorized value of each key.

    Example:
        >>> tokens, targets = MemorizationTask(length=4, alphabet=8).draw(mx.random.key(0), 1)
        >>> tokens.tolist(), targets.tolist()
        ([[0, 7, 2, 7]], [[-1, 4, -1, 5]])
    """

    length: int = 32
    """Length L of a sequence in tokens, even."""
    alphabet: int = 256
    """Vocabulary size V, even: V/2 - 1 keys, V/2 values, marker."""
    map_seed: int = 0
    """Random seed of the mapping from keys to values."""

    summary = "Memorize the value of each key (memorization)."
    long_range = False
    masked = True

    def __post_init__(self):
        require_types(self)
        require_at_most(self, length=2**20, alphabet=2**20, map_seed=2**31 - 1)
        require(self.length % 2 == 0 and self.length >= 2, f"length={self.length}: must be even, and at least 2")
        V = self.alphabet
        require(V % 2 == 0 and V >= 4, f"alphabet={V}: must be even, and at least 4 (a key, two values, marker)")
        require(self.map_seed >= 0, f"map_seed={self.map_seed}: must be 0 or above")

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V."""
        return self.alphabet

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the values, ln(V/2) nats."""
        return math.log(self.alphabet / 2)

    def values(self) -> mx.array:
        """Return the value of each key, (V/2 - 1,), all different."""
        half = self.alphabet // 2
        return half - 1 + mx.random.permutation(half, key=mx.random.key(self.map_seed))[:-1].astype(mx.int32)

    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, L), int32."""
        keys = mx.random.randint(0, self.alphabet // 2 - 1, (size, self.length // 2), key=key)
        tokens = mx.stack([keys, mx.full(keys.shape, self.alphabet - 1)], axis=2)
        targets = mx.stack([mx.full(keys.shape, IGNORED), self.values()[keys]], axis=2)
        return tokens.reshape(size, -1), targets.reshape(size, -1)
