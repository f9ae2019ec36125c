"""Operations of a forward pass over one sequence, counted three ways.

Letters: L length, D width, K block width, T = ⌈L/K⌉ blocks, r layers, V outputs.

| | regular | recurrent |
|---|---|---|
| paper (§5.1) | r(L²D + LD²) | r(4DLK + 2LD²) |
| true multiply-adds, dense | r(12LD² + 2L²D) | r(24LD² + 8LKD) |

The paper leaves out the MLP and most projections. The true count takes every window whole, as Eq. 6 has it, and
no head. What this package executes is less: see `executed_ops`.
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
    D, K, r, n = config.dim, config.block, config.layers, wanted(length, last)
    head = n * D * config.outputs
    if model == "regular":
        return (r - 1) * _tau(D, length, length) + _tau(D, n, length) + head
    T = -(-length // K)
    half, second, whole = _tau(D, K, K), _tau(D, K, 2 * K), _tau(D, 2 * K, 2 * K)
    total = head
    for layer in range(r):
        read = T if layer < r - 1 else T - (length - n) // K
        if config.history == "hidden":
            total += half + (T - 1) * second + read * half
        else:
            spared = T > 1 and close and read <= 1  # (7) needs no history, so the last window needs no y
            total += half + (T - 1 - spared) * whole + spared * second + half
    return total


def _tau(D: int, rows: int, window: int) -> int:
    """A layer on the last ``rows`` of a window: query, output and MLP of those, keys and values of all."""
    return 10 * rows * D**2 + 2 * window * D**2 + 2 * rows * window * D
