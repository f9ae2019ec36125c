"""Copy and selective copy (paper §6.2): recall a payload after thousands of noise tokens.

Vocabulary V: noise 0, payload 1 … V-2 drawn uniformly with repeats, marker V-1. A sequence is
N noise and P payload tokens, then P markers: L = N + 2P. At the markers the model must give the
payload in order, all in parallel: no answer is fed back.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx

from mlx_rtx.errors import require


@dataclass(frozen=True, kw_only=True)
class CopyTask:
    """Copy: the payload comes first, the noise after it.

    Example:
        >>> tokens, targets = CopyTask(noise=4, payload=2, alphabet=5).batch(mx.random.key(0), 1)
        >>> tokens
        array([[2, 1, 0, 0, 0, 0, 4, 4]], dtype=int32)
        >>> targets
        array([[2, 1]], dtype=int32)
    """

    noise: int = 4096
    """Noise tokens N."""
    payload: int = 16
    """Tokens P to recall."""
    alphabet: int = 16
    """Vocabulary V: noise, V - 2 payload symbols, marker."""

    def __post_init__(self):
        require(self.noise >= 1, f"noise={self.noise}: must be at least 1 token, e.g. 4096")
        require(self.payload >= 1, f"payload={self.payload}: must be at least 1 token, e.g. 16")
        require(self.alphabet >= 4, f"alphabet={self.alphabet}: must be at least 4 (noise, two symbols, marker)")

    @property
    def vocab_size(self) -> int:
        """Input vocabulary V."""
        return self.alphabet

    @property
    def length(self) -> int:
        """Length L = N + 2P of a sequence in tokens."""
        return self.noise + 2 * self.payload

    @property
    def chance(self) -> float:
        """Loss of a uniform guess among the payload symbols, ln(V - 2) nats."""
        return math.log(self.alphabet - 2)

    def at(self, noise: int) -> Self:
        """The same task with ``noise`` noise tokens."""
        return replace(self, noise=noise)

    def batch(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Tokens (size, L) and targets (size, P), int32, fixed by ``key`` and made on the device."""
        payload_key, place_key = mx.random.split(key)
        targets = mx.random.randint(1, self.alphabet - 1, (size, self.payload), key=payload_key)
        tokens = mx.zeros((size, self.length), mx.int32)
        tokens[:, -self.payload :] = self.alphabet - 1
        return mx.put_along_axis(tokens, self._places(place_key, size), targets, axis=1), targets

    def _places(self, key: mx.array, size: int) -> mx.array:
        """Where the payload stands (size, P), ascending."""
        return mx.broadcast_to(mx.arange(self.payload), (size, self.payload))


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyTask(CopyTask):
    """Selective copy: the payload is strewn over the noise, at distinct uniform places."""

    def _places(self, key: mx.array, size: int) -> mx.array:
        order = mx.random.uniform(shape=(size, self.noise + self.payload), key=key)
        return mx.sort(mx.argpartition(order, kth=self.payload - 1, axis=1)[:, : self.payload], axis=1)
