"""Dropout whose masks belong to blocks: however a sequence is cut, each block draws the same ones.

Letters: B batch, S windows, N rows of a window, n rows whose output is wanted, D width, H heads.
"""

import math
from typing import NamedTuple

from mlx_rtx.model.config import Architecture
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
    kept: mx.array | None = None  # in place of those on windows, for fused kernels: bits (S, B, H, n, ⌈N/32⌉)

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
        drawn = self.outputs.windows, self.weights.windows
        kinds = ([None] * count if scales is None else each(scales) for scales in drawn)
        return [DropoutScales.of(*scales) for scales in zip(*kinds, strict=True)]


def split_keys(keys: mx.array, parts: int) -> list[mx.array]:
    """Split each of S keys (S, 2) for ``parts`` uses: ``parts`` arrays (S, 2)."""
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [part.squeeze(1) for part in mx.split(split, parts, axis=1)]  # views; indices would copy them


def draw_scales(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Scales (S, \\*shape), 0 with probability ``rate`` and 1 / (1 - rate) else, from S keys (S, 2)."""
    return as_scales(draw_kept(keys, rate, shape), rate)


def draw_kept(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """What is kept, bools (S, \\*shape), false with probability ``rate``, from S keys (S, 2)."""
    count, kept = math.prod(shape), round((1 - rate) * 2**32) - 1
    # splitting a key gives its random bits as they are: a launch, where drawing numbers in [0, 1) takes six more
    bits = mx.vmap(lambda key: mx.random.split(key, -(-count // 2)).flatten())(keys)  # (S, count or one more)
    return (bits[:, :count] <= mx.array(kept, mx.uint32)).reshape(-1, *shape)


def as_scales(kept: mx.array, rate: float) -> mx.array:
    """The scales of what is kept at a rate."""
    return mx.where(kept, 1 / (1 - rate), 0.0)


def as_bits(kept: mx.array) -> mx.array:
    """What is kept (…, N) in words of 32 bits (…, ⌈N/32⌉), uint32; the first of a word is its lowest bit."""
    if padding := -kept.shape[-1] % 32:
        kept = mx.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(0, padding)])
    kept = mx.unflatten(kept, -1, (kept.shape[-1] // 32, 32))
    return mx.where(kept, mx.array([1 << i for i in range(32)], mx.uint32), mx.array(0, mx.uint32)).sum(-1)


def draw_segment(
    config: Architecture, keys: mx.array | None, batch: int, windows: int, wanted: int, fused: bool
) -> SegmentDropout:
    """Draw what a recurrence drops in a segment of S blocks.

    A block's key is that of the window which makes its h, and which gives the y of the block before.

    Args:
        config: rates and sizes.
        keys: one a block and one for what reads the last block, (S + 1, 2); None for no dropout.
        batch: B.
        windows: so many of the last blocks have one.
        wanted: blocks that are read.
        fused: windows run by fused kernels.
    """
    if keys is None:
        return SegmentDropout()
    K, D, outputs, weights, bits = config.block, config.dim, SegmentScales(), SegmentScales(), None

    def draw(draw_kind, keys, rate, shape, of_window, of_half):
        """First, windows and last, in ``shape`` + (rows, columns of a window or of a half)."""
        if config.history == "hidden":
            of_h, of_y = split_keys(keys, 2)
            drawn = draw_kind(of_h[:-1], rate, (*shape, K, of_window))
            last = draw_kind(of_y[-max(wanted, 1) :], rate, (*shape, K, of_half))  # (wanted, ·, B, …, K, ·)
            last = mx.moveaxis(last, 0, 2).flatten(1, 2)
        else:
            drawn = draw_kind(keys, rate, (*shape, 2 * K, of_window))
            drawn, last = drawn[:-1], drawn[-1, ..., :K, :of_half]
        return drawn[0, ..., -K:, -of_half:], drawn[len(drawn) - windows :], last

    if rate := config.attention_dropout:
        keys, of_weights = split_keys(keys, 2)
        kind = draw_kept if fused else draw_scales
        first, each_window, last = draw(kind, of_weights, rate, (1, batch, config.heads), 2 * K, K)
        weights = SegmentScales(first, each_window, last)
        if fused:
            weights = SegmentScales(as_scales(first, rate), None, as_scales(last, rate))
            bits = as_bits(each_window.squeeze(1))
    if rate := config.dropout:
        outputs = SegmentScales(*draw(draw_scales, keys, rate, (2, batch), D, D))
    return SegmentDropout(outputs, weights, bits)


def fresh_key() -> mx.array:
    """A key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
