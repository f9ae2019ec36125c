"""Induction heads: a trigger occurs once in noise and again at the end; recall the token that followed it.

After Gu & Dao, *Mamba* ([arXiv 2312.00752](https://arxiv.org/abs/2312.00752)) and Fu et al., *H3*
([arXiv 2212.14052](https://arxiv.org/abs/2212.14052)). Vocabulary V: noise 0 … V-2, trigger V-1. A sequence has N noise
tokens and, inserted at a uniformly drawn position, the trigger followed by one more noise token, the answer; then the
trigger again: L = N + 3. Only the last position has a target.
"""

import math
from dataclasses import dataclass

from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks.synthetic import SyntheticTask

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class InductionTask(SyntheticTask):
    """Recall the token that followed the trigger.

    Example:
        >>> tokens, targets = InductionTask(noise=5, alphabet=4).draw(mx.random.key(0), 1)
        >>> tokens.tolist(), targets.tolist()
        ([[3, 2, 0, 0, 1, 1, 0, 3]], [[2]])
    """

    noise: int = 253
    """Number of noise tokens N, without the answer."""
    alphabet: int = 16
    """Vocabulary size V: V - 1 noise symbols, trigger."""

    summary = "Recall the token that followed a trigger in noise (induction heads)."

    def __post_init__(self):
        require_types(self)
        require(self.noise >= 1, f"noise={self.noise}: must be at least 1 token, e.g. 253")
        require_at_most(self, noise=2**30, alphabet=2**24)
        require(self.alphabet >= 3, f"alphabet={self.alphabet}: must be at least 3 (two symbols, trigger)")

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V."""
        return self.alphabet

    @property
    def length(self) -> int:
        """Length L = N + 3 of a sequence in tokens."""
        return self.noise + 3

    @property
    def targets(self) -> int:
        """Number of targets: 1, at the last position."""
        return 1

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the noise symbols, ln(V - 1) nats."""
        return math.log(self.alphabet - 1)

    @property
    def stage(self) -> dict[str, int]:
        """Noise, which a curriculum increases."""
        return {"noise": self.noise}

    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, 1), int32."""
        for_noise, for_places = mx.random.split(key)
        noise = mx.random.randint(0, self.alphabet - 1, (size, self.length), key=for_noise)
        places = mx.random.randint(0, self.noise + 1, (size, 1), key=for_places)
        at = mx.arange(self.length)
        tokens = mx.where((at == places) | (at == self.length - 1), self.alphabet - 1, noise)
        return tokens, mx.take_along_axis(noise, places + 1, axis=1)
