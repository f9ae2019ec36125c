"""Inputs and outputs of a model: segments of sequences, the carry between segments, and segment outputs.

Letters: B batch, n tokens per segment, K block width, S blocks per segment, D width, r layers.
"""

from typing import NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_whole

import mlx.core as mx


class Carry(NamedTuple):
    """Everything that one block passes to the next, in one layer: two arrays (B, K, D).

    With ``state_norm`` both are RMS-normalised. A model's carry is a tuple of r of these, one per layer; it is None
    before the first block and after a closed sequence.
    """

    m: mx.array  # m_i-1, the history that Eq. 6 mixes in: h_i-1 or y_i-1
    h: mx.array  # h_i


Carries = tuple[Carry, ...]
Saved = tuple[mx.array, ...]  # outputs of one fused scan, in the form that its kernels use


class Segment(NamedTuple):
    """Consecutive tokens of a sequence, and how to process them.

    For a recurrent model a segment starts at a block boundary, and only the last segment of a sequence may end within a
    block.
    """

    tokens: mx.array  # (B, n) integers
    position: int | mx.array = 0  # number of preceding tokens; an array is not checked against the position table
    outputs_wanted: int = 0  # number of final positions whose outputs are computed
    close: bool = False  # whether the segment ends the sequence: Eq. 7 for the last block
    keys: mx.array | None = None  # dropout keys (S + 1, 2), see `Transformer.dropout_keys`; None for no dropout


class SegmentOutput(NamedTuple):
    """Result of running a segment."""

    y: mx.array  # (B, outputs_wanted, D), input of the readout
    carry: Carries | None  # for the next segment
    saved: tuple[Saved, ...]  # one entry per layer; a later backward pass that takes them need not rerun the scans


def resolve_last(length: int, last: int | None) -> int:
    """Return the number of final positions to read: ``last``, or ``length`` if None.

    Raises:
        UserError: if ``last`` is not between 1 and ``length``.
    """
    require_whole(length=length)
    last = length if last is None else last
    require_whole(last=last)
    require(last <= length, f"last={last}: must lie in 1 … {length}, the length of the input")
    return last
