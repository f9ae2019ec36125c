"""Dropout masks drawn per block, so that they do not depend on how a sequence is split into segments.

Letters: B batch, S windows, N rows of a window, n rows whose output is computed, D width, H heads.
"""

import math
from typing import NamedTuple

from mlx_rtx.model.config import Architecture
from mlx_rtx.support.trees import each

import mlx.core as mx


class DropoutScales(NamedTuple):
    """Factors of a layer's two outputs and its attention weights, 0 or 1 / (1 - rate); None for no dropout."""

    attention: mx.array | None = None  # (B·n, D)
    mlp: mx.array | None = None  # (B·n, D)
    weights: mx.array | None = None  # (B, H, n, N)

    @classmethod
    def of(cls, outputs: mx.array | None, weights: mx.array | None = None) -> "DropoutScales":
        """Make them from the scales of both outputs (2, B, n, D) and of the attention weights (1, B, H, n, N)."""
        attention, mlp = (None, None) if outputs is None else outputs.flatten(1, 2)
        return cls(attention, mlp, None if weights is None else weights.squeeze(0))


class SegmentScales(NamedTuple):
    """Dropout scales of one kind for the applications of τ in a segment; None for no dropout."""

    first: mx.array | None = None  # for the sequence's first block
    windows: mx.array | None = None  # (S, …), for the windows
    last: mx.array | None = None  # for the final call that computes outputs y


class SegmentDropout(NamedTuple):
    """All dropout scales of τ in a segment."""

    outputs: SegmentScales = SegmentScales()  # each (2, B, n, D), for n rows
    weights: SegmentScales = SegmentScales()  # each (1, B, H, n, N), for n rows of a window of N
    kept: mx.array | None = None  # bits (S, B, H, n, ⌈N/32⌉) that replace weights.windows for the fused kernels

    @property
    def first(self) -> DropoutScales:
        """Scales for the sequence's first block."""
        return DropoutScales.of(self.outputs.first, self.weights.first)

    @property
    def last(self) -> DropoutScales:
        """Scales for the final call that computes outputs y."""
        return DropoutScales.of(self.outputs.last, self.weights.last)

    def windows(self, count: int) -> list[DropoutScales]:
        """Return the scales for each of ``count`` windows."""
        drawn = self.outputs.windows, self.weights.windows
        kinds = ([None] * count if scales is None else each(scales) for scales in drawn)
        return [DropoutScales.of(*scales) for scales in zip(*kinds, strict=True)]


def split_keys(keys: mx.array, parts: int) -> list[mx.array]:
    """Split each of S keys (S, 2) into ``parts`` keys; return ``parts`` arrays (S, 2)."""
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [part.squeeze(1) for part in mx.split(split, parts, axis=1)]  # views; indexing would copy


def draw_scales(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Draw scales (S, \\*shape) from S keys (S, 2): 0 with probability ``rate``, else 1 / (1 - rate)."""
    return as_scales(draw_kept(keys, rate, shape), rate)


def draw_kept(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Draw boolean masks (S, \\*shape) from S keys (S, 2): False (dropped) with probability ``rate``, else True."""
    count, kept = math.prod(shape), round((1 - rate) * 2**32) - 1
    # splitting a key yields its random bits in one kernel launch; drawing uniform numbers would take six more launches
    bits = mx.vmap(lambda key: mx.random.split(key, -(-count // 2)).flatten())(keys)  # (S, count or one more)
    return (bits[:, :count] <= mx.array(kept, mx.uint32)).reshape(-1, *shape)


def as_scales(kept: mx.array, rate: float) -> mx.array:
    """Convert a boolean mask to dropout scales for ``rate``."""
    return mx.where(kept, 1 / (1 - rate), 0.0)


def as_bits(kept: mx.array) -> mx.array:
    """Pack a boolean mask (…, N) into uint32 words (…, ⌈N/32⌉), lowest bit first."""
    if padding := -kept.shape[-1] % 32:
        kept = mx.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(0, padding)])
    kept = mx.unflatten(kept, -1, (kept.shape[-1] // 32, 32))
    return mx.where(kept, mx.array([1 << i for i in range(32)], mx.uint32), mx.array(0, mx.uint32)).sum(-1)


def draw_segment(
    config: Architecture, keys: mx.array | None, batch: int, windows: int, wanted: int, fused: bool
) -> SegmentDropout:
    """Draw all dropout scales of a recurrence in a segment of S blocks.

    The key of a block belongs to the window that computes its h, and with it the y of the preceding block.

    Args:
        config: dropout rates and sizes.
        keys: one key per block and one for the outputs of the last block, (S + 1, 2); None for no dropout.
        batch: B.
        windows: number of windows: S, or S - 1 at the start of a sequence.
        wanted: number of blocks whose outputs are computed.
        fused: whether the windows run in fused kernels.
    """
    if keys is None:
        return SegmentDropout()
    K, D, outputs, weights, bits = config.block, config.dim, SegmentScales(), SegmentScales(), None

    def draw(draw_kind, keys, rate, shape, of_window, of_half):
        """Draw (first, windows, last), each of ``shape`` followed by rows and columns of a window or of a half."""
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
    """Draw a random key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
