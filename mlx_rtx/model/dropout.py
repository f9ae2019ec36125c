"""Dropout whose masks belong to blocks: however a sequence is cut, each block draws the same ones.

Letters: B batch, S windows, N rows of a window, n rows whose output is wanted, D width, H heads.
"""

import math
from typing import NamedTuple

from mlx_rtx.support.trees import each

import mlx.core as mx


class DropoutScales(NamedTuple):
    """Scales of a layer's two outputs and its attention weights, 0 or 1 / (1 - rate); None where nothing is dropped."""

    attention: mx.array | None = None  # (B·n, D)
    mlp: mx.array | None = None  # (B·n, D)
    weights: mx.array | None = None  # (B, H, n, N)

    @classmethod
    def of(cls, outputs: mx.array | None, weights: mx.array | None = None) -> "DropoutScales":
        """From those of both outputs in one array (2, B, n, D), and those of the weights (1, B, H, n, N)."""
        attention, mlp = (None, None) if outputs is None else outputs.flatten(1, 2)
        return cls(attention, mlp, None if weights is None else weights.squeeze(0))


class SegmentScales(NamedTuple):
    """Dropout scales of one kind in a segment, where τ is used; None where nothing is dropped."""

    first: mx.array | None = None  # on the sequence's first block
    windows: mx.array | None = None  # (S, …), on each window
    last: mx.array | None = None  # on what is read in one call at the end


class SegmentDropout(NamedTuple):
    """All dropout scales of τ in a segment."""

    outputs: SegmentScales = SegmentScales()  # (2, B, n, D), of n rows
    weights: SegmentScales = SegmentScales()  # (1, B, H, n, N), of n rows in a window of N

    @property
    def first(self) -> DropoutScales:
        """On the sequence's first block."""
        return DropoutScales.of(self.outputs.first, self.weights.first)

    @property
    def last(self) -> DropoutScales:
        """On what is read in one call at the end."""
        return DropoutScales.of(self.outputs.last, self.weights.last)

    def windows(self, count: int) -> list[DropoutScales]:
        """On each of so many windows."""
        kinds = ([None] * count if kind.windows is None else each(kind.windows) for kind in self)
        return [DropoutScales.of(*scales) for scales in zip(*kinds, strict=True)]


def split_keys(keys: mx.array, parts: int) -> list[mx.array]:
    """Split each of S keys (S, 2) for ``parts`` uses: ``parts`` arrays (S, 2)."""
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [part.squeeze(1) for part in mx.split(split, parts, axis=1)]  # views; indices would copy them


def draw_scales(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Scales (S, \\*shape), 0 with probability ``rate`` and 1 / (1 - rate) else, from S keys (S, 2)."""
    count, kept = math.prod(shape), round((1 - rate) * 2**32) - 1
    # splitting a key gives its random bits as they are: a launch, where drawing numbers in [0, 1) takes six more
    bits = mx.vmap(lambda key: mx.random.split(key, -(-count // 2)).flatten())(keys)  # (S, count or one more)
    return mx.where(bits[:, :count] <= mx.array(kept, mx.uint32), 1 / (1 - rate), 0.0).reshape(-1, *shape)


def fresh_key() -> mx.array:
    """A key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
