"""Operations of a forward pass over one sequence, counted in three ways.

Letters: L length, D width, K block width, T = ⌈L/K⌉ blocks, r layers, V outputs.

| | regular | recurrent |
|---|---|---|
| paper (§5.1) | r(L²D + LD²) | r(4DLK + 2LD²) |
| true multiply-adds, dense | r(12LD² + 2L²D) | r(24LD² + 8LKD) |

The paper leaves out the MLP and most projections. The true count includes all rows of every window, as in Eq. 6, but
not the output head. This package executes fewer: see `executed_ops`, and `training_ops` for a training step.
"""

import itertools
from typing import NamedTuple, get_args

from mlx_rtx.model.config import Architecture, ModelConfig, ModelKind
from mlx_rtx.model.segment import resolve_last
from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_whole


class Calls(NamedTuple):
    """``times`` applications of τ that compute the last ``rows`` rows of windows of ``window`` rows."""

    times: int
    rows: int
    window: int


class SegmentSize(NamedTuple):
    """Size of consecutive equal segments, each a call of `Transformer.run`."""

    blocks: int
    blocks_wanted: int
    """Number of blocks whose outputs the top layer computes."""
    starts: bool
    """Whether the segment is the first of the sequence."""
    times: int = 1
    """Number of such segments."""


def paper_ops(config: Architecture, length: int, model: ModelKind = "recurrent") -> int:
    """Return the paper's count of operations for one sequence.

    Args:
        config: architecture of the model.
        length: length L of the sequence in tokens.
        model: kind of the model.

    Example:
        >>> f"{paper_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '6.29e+06'
    """
    D, K, r = _sizes(config, length, model)
    if model == "regular":
        return r * (length**2 * D + length * D**2)
    return r * (4 * D * length * K + 2 * length * D**2)


def true_ops(config: Architecture, length: int, model: ModelKind = "recurrent") -> int:
    """Return the multiply-adds of the layers if all rows are computed; arguments as for `paper_ops`.

    Example:
        >>> f"{true_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '3.36e+07'
    """
    D, K, r = _sizes(config, length, model)
    if model == "regular":
        return r * (12 * length * D**2 + 2 * length**2 * D)
    return r * (24 * length * D**2 + 8 * length * K * D)


def _sizes(config: Architecture, length: int, model: ModelKind) -> tuple[int, int, int]:
    """Check the arguments, and return D, K, r."""
    require(isinstance(config, Architecture), f"config: is a {type(config).__name__}; give a ModelConfig")
    require(model in get_args(ModelKind), f"model={model!r}: must be one of {', '.join(get_args(ModelKind))}")
    require_whole(length=length)
    return config.dim, config.block, config.layers


def executed_ops(
    config: ModelConfig,
    length: int,
    model: ModelKind = "recurrent",
    last: int | None = None,
    segment: int | None = None,
) -> int:
    """Return the multiply-adds in the matrix products that ``model(tokens, last)`` executes for one sequence.

    Some work is avoided: with ``history="hidden"`` only the second half of a window is computed, and outputs only for
    the blocks that contain the last positions; ``"output"`` needs both halves. Blocks are computed as a whole,
    including masked scores.

    Args:
        config: configuration of the model.
        length: length L of the sequence in tokens.
        model: kind of the model.
        last: number of final positions with outputs; all if None.
        segment: blocks per segment, if the model runs in segments.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> f"{executed_ops(config, 4128, last=16) / true_ops(config, 4128):.2f}"
        '0.58'
    """
    _sizes(config, length, model)
    n = resolve_last(length, last)
    head = n * config.dim * config.outputs
    if model == "regular":
        return _regular(config, length, n) + head
    return _recurrent(config, segment_sizes(config, length, n, segment)) + head


def training_ops(
    config: ModelConfig, length: int, targets: int, model: ModelKind = "recurrent", segment: int | None = None
) -> int:
    """Return the multiply-adds in the matrix products of `loss_and_grad` for one sequence.

    They are those of a forward pass, and twice as many for the backward pass; with several segments there is an
    additional forward pass that computes the carries.

    Args:
        config: configuration of the model.
        length: length L of the sequence in tokens.
        targets: number of final positions with a target.
        model: kind of the model.
        segment: blocks per segment of the gradient checkpointing; None for the whole sequence.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> f"{training_ops(config, 4128, 16, segment=8) / executed_ops(config, 4128, last=16):.2f}"
        '3.95'
    """
    n = resolve_last(length, targets)
    head = n * config.dim * config.outputs
    if model == "regular":
        return 3 * (_regular(config, length, n) + head)
    run = segment_sizes(config, length, n, segment)
    first = _recurrent(config, [size._replace(blocks_wanted=0) for size in run[:-1]])
    # in segments without outputs the gradient does not need the value of the carry: its last product is not recomputed
    spared = [size for size in run[:-1] if size.blocks_wanted == 0]
    whole = [size for size in spared if config.history == "output" and size.blocks > size.starts]  # windows, not halves
    unneeded = 4 * config.block * config.dim**2 * sum(size.times for size in spared + whole)
    return first + 3 * (_recurrent(config, run) + head) - unneeded


def segment_sizes(config: Architecture, length: int, n: int, segment: int | None = None) -> list[SegmentSize]:
    """Return the sizes of the segments, of ``segment`` blocks, of a sequence with outputs at its last ``n`` positions.

    Equal consecutive segments share an entry; the last segment has its own.
    """
    T, unread = -(-length // config.block), (length - n) // config.block
    most = segment or T
    count, reads = -(-T // most), unread // most  # number of segments, and the first one with outputs
    cuts = sorted(cut for cut in {0, 1, reads, reads + 1, count - 1, count} if cut <= count)
    return [
        SegmentSize(min(most, T - i), max(0, min(i + most, T) - max(i, unread)), i == 0, end - start)
        for start, end in itertools.pairwise(cuts)
        for i in [start * most]
    ]


def layer_calls(config: Architecture, size: SegmentSize, top: bool = True) -> list[Calls]:
    """Return the applications of τ in one layer of a recurrent transformer; lower layers compute all outputs."""
    K, windows = config.block, size.blocks - size.starts  # the first block of a sequence has no preceding one
    wanted = size.blocks_wanted if top else size.blocks
    first = Calls(int(size.starts), K, K)
    if config.history == "hidden":
        return [first, Calls(windows, K, 2 * K), Calls(wanted, K, K)]
    return [first, Calls(windows, 2 * K, 2 * K), Calls(int(wanted > 0), K, K)]


def _regular(config: Architecture, length: int, n: int) -> int:
    """Return the multiply-adds of the layers of a regular transformer; the top layer computes ``n`` positions."""
    return (config.layers - 1) * _tau(config.dim, length, length) + _tau(config.dim, n, length)


def _recurrent(config: Architecture, run: list[SegmentSize]) -> int:
    """Return the multiply-adds of the layers of a recurrent transformer over the segments of a sequence."""
    tops = [layer == config.layers - 1 for layer in range(config.layers)]
    calls = [(size.times, call) for top in tops for size in run for call in layer_calls(config, size, top)]
    return sum(times * call.times * _tau(config.dim, call.rows, call.window) for times, call in calls)


def _tau(D: int, rows: int, window: int) -> int:
    """Return the multiply-adds of a layer that computes the last ``rows`` rows of a window.

    Output projection and MLP are computed for these rows, keys and values for all, and queries for all unless
    ``rows`` is less than half of the window.
    """
    queries = rows if 2 * rows < window else window
    return 9 * rows * D**2 + (queries + 2 * window) * D**2 + 2 * rows * window * D
