"""Multi-query associative recall (MQAR): key-value pairs, followed by each key once as a query for its value.

After Arora et al., *Zoology* ([arXiv 2312.04927](https://arxiv.org/abs/2312.04927)) and its program's
`multiquery_ar`. Vocabulary V: 0, keys 1 … V/2-1, values V/2 … V-1. A sequence begins with N distinct keys, each
followed by its value, all distinct. Each key occurs once in the rest, at an even position, as a query whose target is
its value; the distances between context and query follow a power law. All other positions are filled with random
tokens, which may be keys and values but have no target.

Differences to the original: each batch is newly generated instead of taken from a fixed set, and V is 128, not 8,192,
for models of about 60,000 parameters.
"""

import math
from dataclasses import dataclass, replace

from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.randomness import step_generator
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks.synthetic import SyntheticTask, distinct, ignored_targets
from mlx_rtx.tasks.task import Batch

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class MqarTask(SyntheticTask):
    """Recall the values of keys.

    Example:
        >>> tokens, targets = MqarTask(length=10, pairs=2, alphabet=12, filler=False).draw(mx.random.key(0), 1)
        >>> tokens.tolist(), targets.tolist()
        ([[5, 7, 1, 9, 0, 0, 1, 0, 5, 0]], [[-1, -1, 9, -1, 7, -1]])
    """

    length: int = 256
    """Length L of a sequence in tokens, even."""
    pairs: int = 16
    """Number of key-value pairs N."""
    alphabet: int = 128
    """Vocabulary size V: filler, V/2 - 1 keys, V/2 values."""
    power: float = 0.01
    """Exponent a of the power law: the g-th possible position of a query after the context has weight g^(a - 1).
    1: uniform."""
    filler: bool = True
    """Fill other positions with random tokens of the vocabulary, else with 0."""
    fewer: bool = False
    """Train on batches with 1, 2, 4 … or N pairs, with equal probability, because few pairs are learned sooner.
    Held-out sequences have N pairs."""

    summary = "Recall the values of many keys, each queried once (multi-query associative recall)."
    metrics = ("loss", "accuracy", "sequence_accuracy")
    masked = True

    def __post_init__(self):
        require_types(self)
        N, L, V = self.pairs, self.length, self.alphabet
        require_at_most(self, length=2**20, alphabet=2**24)
        require(N >= 1, f"pairs={N}: must be at least 1")
        require(L % 2 == 0 and L >= 4 * N, f"length={L}: must be even, and at least {4 * N} for pairs={N}")
        require(V % 2 == 0 and V > 2 * N, f"alphabet={V}: must be even, and at least {2 * N + 2} for pairs={N}")
        require(0 <= self.power <= 1, f"power={self.power}: must lie in [0, 1], e.g. 0.01")

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V."""
        return self.alphabet

    @property
    def targets(self) -> int:
        """Number of positions after the context, L - 2N."""
        return self.length - 2 * self.pairs

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the values, ln(V/2) nats."""
        return math.log(self.alphabet / 2)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the batch of a training step, with N pairs or, with ``fewer``, a drawn number of pairs."""
        if not self.fewer:
            return super().batch(seed, step, size)
        numbers = [*(2**i for i in range((self.pairs - 1).bit_length())), self.pairs]
        pairs = int(step_generator(seed, step).choice(numbers))
        return replace(self, pairs=pairs, fewer=False).batch(seed, step, size)

    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, L - 2N), int32."""
        N, V, n = self.pairs, self.alphabet, self.targets
        for_keys, for_values, for_gaps, for_filler = mx.random.split(key, 4)
        keys = 1 + distinct(for_keys, size, V // 2 - 1, N)
        values = V // 2 + distinct(for_values, size, V // 2, N)
        context = mx.stack([keys, values], axis=2).reshape(size, 2 * N)
        # Gumbel top-k: draws by these weights, without replacement
        weights = (self.power - 1) * mx.log(mx.arange(1, n // 2 + 1))
        drawn = weights + mx.random.gumbel(shape=(size, n // 2), key=for_gaps)
        places = 2 * mx.argsort(-drawn, axis=1)[:, :N].astype(mx.int32)
        rest = mx.random.randint(0, V if self.filler else 1, (size, n), key=for_filler)
        rest = mx.put_along_axis(rest, places, keys, axis=1)
        targets = mx.put_along_axis(ignored_targets(size, n), places, values, axis=1)
        return mx.concatenate([context, rest], axis=1), targets
