"""Copy and selective copy (paper §6.2): recall a payload after thousands of noise tokens.

Vocabulary V: noise 0, payload 1 … V-2 drawn uniformly with repetition, marker V-1. A sequence consists of N noise and P
payload tokens, then P markers: L = N + 2P. At the markers the model must output the payload in order, in parallel: its
outputs are not fed back.
"""

import math
from dataclasses import dataclass
from functools import partial

from mlx_rtx.support import backend
from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks.synthetic import SyntheticTask
from mlx_rtx.tasks.task import Sequences

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class CopyTask(SyntheticTask):
    """Copy: the payload comes first, then the noise. Every batch is newly generated.

    Example:
        >>> tokens, targets = CopyTask(noise=4, payload=2, alphabet=5).draw(mx.random.key(0), 1)
        >>> tokens
        array([[2, 1, 0, 0, 0, 0, 4, 4]], dtype=int32)
        >>> targets
        array([[2, 1]], dtype=int32)
    """

    noise: int = 4096
    """Number of noise tokens N."""
    payload: int = 16
    """Number of tokens P to recall."""
    alphabet: int = 16
    """Vocabulary size V: noise, V - 2 payload symbols, marker."""

    summary = "Recall 16 tokens after thousands of noise tokens (paper §6.2)."
    metrics = ("loss", "accuracy", "sequence_accuracy")

    def __post_init__(self):
        require_types(self)
        require(self.noise >= 1, f"noise={self.noise}: must be at least 1 token, e.g. 4096")
        require(self.payload >= 1, f"payload={self.payload}: must be at least 1 token, e.g. 16")
        require_at_most(self, noise=2**30, payload=2**20, alphabet=2**24)
        require(self.alphabet >= 4, f"alphabet={self.alphabet}: must be at least 4 (noise, two symbols, marker)")

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V of the input."""
        return self.alphabet

    @property
    def length(self) -> int:
        """Length L = N + 2P of a sequence in tokens."""
        return self.noise + 2 * self.payload

    @property
    def targets(self) -> int:
        """Number of targets P, the payload."""
        return self.payload

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the payload symbols, ln(V - 2) nats."""
        return math.log(self.alphabet - 2)

    @property
    def stage(self) -> dict[str, int]:
        """Noise, which a curriculum increases."""
        return {"noise": self.noise}

    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, P), int32."""
        places, payload = self._draw(key, size)
        return self._tokens(places, payload, 0, self.length), payload

    def sequences(self, key: mx.array, size: int) -> Sequences:
        """Return ``size`` sequences, whose tokens are generated piece by piece as they are read."""
        places, payload = self._draw(key, size)
        return Sequences(self.length, partial(self._tokens, places, payload), payload)

    def _draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Draw the positions of the payload, ascending, and its symbols, each (size, P)."""
        payload_key, place_key = mx.random.split(key)
        payload = mx.random.randint(1, self.alphabet - 1, (size, self.payload), key=payload_key)
        return self._places(place_key, size), payload

    def _places(self, key: mx.array, size: int) -> mx.array:
        return mx.broadcast_to(mx.arange(self.payload), (size, self.payload))

    def _tokens(self, places: mx.array, payload: mx.array, start: int, end: int) -> mx.array:
        """Return the tokens at positions start … end - 1."""
        marker = mx.where(mx.arange(start, end) < self.noise + self.payload, 0, self.alphabet - 1)
        inside = mx.where((places >= start) & (places < end), places - start, end - start)  # others: padding
        tokens = mx.pad(mx.broadcast_to(marker, (len(payload), end - start)), [(0, 0), (0, 1)])
        return mx.put_along_axis(tokens, inside, payload, axis=1)[:, :-1]


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyTask(CopyTask):
    """Selective copy: the payload is scattered over the noise, at distinct, uniformly drawn positions.

    Drawing the positions takes 8 bytes per token; no other memory grows with the noise.
    """

    summary = "Recall 16 tokens scattered over thousands of noise tokens (paper §6.2)."

    def _places(self, key: mx.array, size: int) -> mx.array:
        needed, there = 8e-9 * size * (self.noise + self.payload), backend.memory_gb()
        require(
            needed <= there,
            f"noise={self.noise}: drawing positions takes {needed:,.0f} GB of {there:,.0f}; use a smaller --batch",
        )
        order = mx.random.uniform(shape=(size, self.noise + self.payload), key=key)
        return mx.sort(mx.argpartition(order, kth=self.payload - 1, axis=1)[:, : self.payload], axis=1)
