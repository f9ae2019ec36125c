"""Operations of a forward pass over one sequence, counted three ways.

Letters: L length, D width, K block width, T = ⌈L/K⌉ blocks, r layers, V outputs.

| | regular | recurrent |
|---|---|---|
| paper (§5.1) | r(L²D + LD²) | r(4DLK + 2LD²) |
| true multiply-adds, dense | r(12LD² + 2L²D) | r(24LD² + 8LKD) |

The paper leaves out the MLP and most projections. The true count takes every window whole, as Eq. 6 has it, and
no head. What this package executes is less: see `executed_ops`, and `training_ops` for a training step.
"""

from typing import Literal

from mlx_rtx.config import Architecture, ModelConfig
from mlx_rtx.embedding import wanted

Kind = Literal["recurrent", "regular"]


def paper_ops(config: Architecture, length: int, model: Kind = "recurrent") -> int:
    """The paper's count for one sequence.

    Args:
        config: the model's sizes.
        length: tokens L of the sequence.
        model: which of the two.

    Example:
        >>> f"{paper_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '6.29e+06'
    """
    D, K, r = config.dim, config.block, config.layers
    if model == "regular":
        return r * (length**2 * D + length * D**2)
    return r * (4 * D * length * K + 2 * length * D**2)


def true_ops(config: Architecture, length: int, model: Kind = "recurrent") -> int:
    """Multiply-adds of the layers when nothing is spared; arguments as for `paper_ops`.

    Example:
        >>> f"{true_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '3.36e+07'
    """
    D, K, r = config.dim, config.block, config.layers
    if model == "regular":
        return r * (12 * length * D**2 + 2 * length**2 * D)
    return r * (24 * length * D**2 + 8 * length * K * D)


def executed_ops(
    config: ModelConfig, length: int, model: Kind = "recurrent", last: int | None = None, close: bool = True
) -> int:
    """Multiply-adds in the matrix products that ``model(tokens, last, close)`` really executes.

    Causality spares work: with ``history="hidden"`` a window gives its second half only, and outputs are
    computed for those blocks that are read; ``"output"`` needs both halves. Whole blocks are computed, masked
    scores as well.

    Args:
        config: the model's sizes and reading.
        length: tokens L of the sequence.
        model: which of the two.
        last: positions that are read; all if None.
        close: see `RecurrentTransformer`; with the reading "output" it may spare the last window's y.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> f"{executed_ops(config, 4128, last=16) / true_ops(config, 4128):.2f}"
        '0.58'
    """
    n = wanted(length, last)
    head = n * config.dim * config.outputs
    if model == "regular":
        return _regular(config, length, n) + head
    read = _blocks(length, config) - (length - n) // config.block
    return _pieces(config, [(_blocks(length, config), read)], close) + head


def training_ops(
    config: ModelConfig, length: int, targets: int, model: Kind = "recurrent", segment: int | None = None
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
    n = wanted(length, targets)
    head = n * config.dim * config.outputs
    if model == "regular":
        return 3 * (_regular(config, length, n) + head)
    T, unread = _blocks(length, config), (length - n) // config.block
    size = segment or T
    pieces = [(min(size, T - i), min(size, max(0, i + size - unread), T - max(i, unread))) for i in range(0, T, size)]
    first = _pieces(config, [(blocks, 0) for blocks, _ in pieces[:-1]], close=False)
    # where no output is read, the gradient needs no value of the carry: its last product is not recomputed
    unneeded = sum(4 * config.block * config.dim**2 for _, read in pieces[:-1] if read == 0)
    return first + 3 * (_pieces(config, pieces, close=True) + head) - unneeded


def _blocks(length: int, config: Architecture) -> int:
    return -(-length // config.block)


def _regular(config: Architecture, length: int, n: int) -> int:
    """Layers of a regular transformer whose top one reads ``n`` positions."""
    return (config.layers - 1) * _tau(config.dim, length, length) + _tau(config.dim, n, length)


def _pieces(config: Architecture, pieces: list[tuple[int, int]], close: bool) -> int:
    """Layers of a recurrent transformer over pieces of a sequence, each of so many blocks, so many of them read.

    ``close``: the last piece ends the sequence.
    """
    D, K, total = config.dim, config.block, 0
    half, second, whole = _tau(D, K, K), _tau(D, K, 2 * K), _tau(D, 2 * K, 2 * K)
    for layer in range(config.layers):
        for i, (blocks, read) in enumerate(pieces):
            begins, ends = i == 0, close and i == len(pieces) - 1
            windows = blocks - begins  # the first block of a sequence has none before it
            read = read if layer == config.layers - 1 else blocks
            total += half * begins
            if config.history == "hidden":
                total += windows * second + read * half
                continue
            spared = min(windows, (not begins) + (ends and read <= 1))  # a y that came with the carry; one without use
            total += spared * second + (windows - spared) * whole + half
    return total


def _tau(D: int, rows: int, window: int) -> int:
    """A layer on the last ``rows`` of a window: query, output and MLP of those, keys and values of all."""
    return 10 * rows * D**2 + 2 * window * D**2 + 2 * rows * window * D
