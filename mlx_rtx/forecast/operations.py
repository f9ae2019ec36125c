"""Operations of a forward pass over one sequence, counted three ways.

Letters: L length, D width, K block width, T = ⌈L/K⌉ blocks, r layers, V outputs.

| | regular | recurrent |
|---|---|---|
| paper (§5.1) | r(L²D + LD²) | r(4DLK + 2LD²) |
| true multiply-adds, dense | r(12LD² + 2L²D) | r(24LD² + 8LKD) |

The paper leaves out the MLP and most projections. The true count takes every window whole, as Eq. 6 has it, and
no head. What this package executes is less: see `executed_ops`, and `training_ops` for a training step.
"""

import itertools
from typing import NamedTuple, get_args

from mlx_rtx.model.config import Architecture, ModelConfig, ModelKind
from mlx_rtx.model.segment import resolve_last
from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_whole


class Calls(NamedTuple):
    """τ applied ``times`` times, to the last ``rows`` of a window of ``window``."""

    times: int
    rows: int
    window: int


class SegmentSize(NamedTuple):
    """What counts of segments that `Transformer.run` takes at once, one after the other and all alike."""

    blocks: int
    blocks_wanted: int
    """Blocks whose outputs the top layer computes."""
    starts: bool
    """It is the sequence's first."""
    times: int = 1
    """How many."""


def paper_ops(config: Architecture, length: int, model: ModelKind = "recurrent") -> int:
    """The paper's count for one sequence.

    Args:
        config: the model's sizes.
        length: tokens L of the sequence.
        model: which of the two.

    Example:
        >>> f"{paper_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '6.29e+06'
    """
    D, K, r = _sizes(config, length, model)
    if model == "regular":
        return r * (length**2 * D + length * D**2)
    return r * (4 * D * length * K + 2 * length * D**2)


def true_ops(config: Architecture, length: int, model: ModelKind = "recurrent") -> int:
    """Multiply-adds of the layers when nothing is spared; arguments as for `paper_ops`.

    Example:
        >>> f"{true_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '3.36e+07'
    """
    D, K, r = _sizes(config, length, model)
    if model == "regular":
        return r * (12 * length * D**2 + 2 * length**2 * D)
    return r * (24 * length * D**2 + 8 * length * K * D)


def _sizes(config: Architecture, length: int, model: ModelKind) -> tuple[int, int, int]:
    """D, K, r of what operations are to be counted of."""
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
    """Multiply-adds in the matrix products that ``model(tokens, last)`` really executes.

    Causality spares work: with ``history="hidden"`` a window gives its second half only, and outputs are
    computed for those blocks that are read; ``"output"`` needs both halves. Whole blocks are computed, masked
    scores as well.

    Args:
        config: the model's sizes and reading.
        length: tokens L of the sequence.
        model: which of the two.
        last: positions that are read; all if None.
        segment: blocks to a segment, when it runs in segments.

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
    """Multiply-adds in the matrix products of `loss_and_grad` for one sequence.

    A forward pass, and twice as much backward; by segments the forward pass that leaves the carries comes first.

    Args:
        config: the model's sizes and reading.
        length: tokens L of the sequence.
        targets: final positions with a target.
        model: which of the two.
        segment: blocks to a segment of the gradient; the whole sequence if None.

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
    # where no output is read, the gradient needs no value of the carry: its last product is not recomputed
    spared = [size for size in run[:-1] if size.blocks_wanted == 0]
    whole = [size for size in spared if config.history == "output" and size.blocks > size.starts]  # windows, not halves
    unneeded = 4 * config.block * config.dim**2 * sum(size.times for size in spared + whole)
    return first + 3 * (_recurrent(config, run) + head) - unneeded


def segment_sizes(config: Architecture, length: int, n: int, segment: int | None = None) -> list[SegmentSize]:
    """The segments of so many blocks in which a sequence runs whose last ``n`` positions are read.

    Those that are alike stand together; the last one stands alone.
    """
    T, unread = -(-length // config.block), (length - n) // config.block
    most = segment or T
    count, reads = -(-T // most), unread // most  # segments, and the first one that is read
    cuts = sorted(cut for cut in {0, 1, reads, reads + 1, count - 1, count} if cut <= count)
    return [
        SegmentSize(min(most, T - i), max(0, min(i + most, T) - max(i, unread)), i == 0, end - start)
        for start, end in itertools.pairwise(cuts)
        for i in [start * most]
    ]


def layer_calls(config: Architecture, size: SegmentSize, top: bool = True) -> list[Calls]:
    """What one layer of a recurrent transformer does in a segment; below the top one every output is wanted."""
    K, windows = config.block, size.blocks - size.starts  # the first block of a sequence has none before it
    wanted = size.blocks_wanted if top else size.blocks
    first = Calls(int(size.starts), K, K)
    if config.history == "hidden":
        return [first, Calls(windows, K, 2 * K), Calls(wanted, K, K)]
    return [first, Calls(windows, 2 * K, 2 * K), Calls(int(wanted > 0), K, K)]


def _regular(config: Architecture, length: int, n: int) -> int:
    """Layers of a regular transformer whose top one reads ``n`` positions."""
    return (config.layers - 1) * _tau(config.dim, length, length) + _tau(config.dim, n, length)


def _recurrent(config: Architecture, run: list[SegmentSize]) -> int:
    """Layers of a recurrent transformer over segments of a sequence."""
    tops = [layer == config.layers - 1 for layer in range(config.layers)]
    calls = [(size.times, call) for top in tops for size in run for call in layer_calls(config, size, top)]
    return sum(times * call.times * _tau(config.dim, call.rows, call.window) for times, call in calls)


def _tau(D: int, rows: int, window: int) -> int:
    """A layer on the last ``rows`` of a window: output and MLP of those, keys and values of all, queries of most."""
    queries = rows if 2 * rows < window else window
    return 9 * rows * D**2 + (queries + 2 * window) * D**2 + 2 * rows * window * D
