"""What passes through a model: a segment of a sequence goes in, outputs and the carry come out.

Letters: B batch, n tokens of a segment, K block width, S blocks of a segment, D width, r layers.
"""

from typing import NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_whole

import mlx.core as mx


class Carry(NamedTuple):
    """All that one block leaves to the next, in one layer: two arrays (B, K, D).

    With ``state_norm`` both are RMS-normalised. A model's carry is a tuple of r of these, one a layer, and None
    before the first block and after a closed sequence.
    """

    m: mx.array  # m_i-1, the history that Eq. 6 mixes in: h_i-1 or y_i-1
    h: mx.array  # h_i


Carries = tuple[Carry, ...]
Saved = tuple[mx.array, ...]  # outputs of one fused scan, in the form that the kernels of its width want


class Segment(NamedTuple):
    """Consecutive tokens of a sequence, and what to do with them.

    A recurrent model's segment begins with a block, and only the last one of a sequence may end inside a block.
    """

    tokens: mx.array  # (B, n) integers
    position: int | mx.array = 0  # tokens before them; as an array it is not checked against the position table
    outputs_wanted: int = 0  # final positions whose outputs are computed
    close: bool = False  # they end the sequence: Eq. 7 for the last block
    keys: mx.array | None = None  # dropout keys (S + 1, 2), see `Transformer.dropout_keys`; None for no dropout


class SegmentOutput(NamedTuple):
    """What a model makes of a segment."""

    y: mx.array  # (B, outputs_wanted, D), to be read out
    carry: Carries | None  # to the next segment
    saved: tuple[Saved, ...]  # one a layer: a later backward pass that is given them runs no scan twice


def resolve_last(length: int, last: int | None) -> int:
    """The number of final positions to read: ``last``, or all of ``length``."""
    require_whole(length=length)
    last = length if last is None else last
    require_whole(last=last)
    require(last <= length, f"last={last}: must lie in 1 … {length}, the length of the input")
    return last
