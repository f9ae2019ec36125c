"""The two ends of a model: tokens to vectors, vectors to logits."""

from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.layer import EPS, normal
from mlx_rtx.support.errors import require

import mlx.core as mx
import mlx.nn as nn


class Embedding(nn.Module):
    """Token and position embedding, and the readout, whose head may be the token table.

    Args:
        config: sizes; ``positions`` decides the rows of the position table (max_len, K or none).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.dim
        rows = {"absolute": config.max_len, "block": config.block, "none": 0}[config.positions]
        self.tokens = normal(config.vocab_size, D)
        if rows:
            self.positions = normal(rows, D)
        self.norm = nn.LayerNorm(D, eps=EPS, bias=False)
        if not config.tie_embeddings:
            self.head = normal(D, config.outputs)
        self._kind, self._rows = config.positions, rows

    def __call__(self, tokens: mx.array, position: int | mx.array = 0) -> mx.array:
        """Embed tokens (B, n) that stand at ``position`` … of their sequences: (B, n, D).

        A position that is an array is not checked: see `check`.
        """
        x, n = self.tokens[tokens], tokens.shape[1]
        if self._kind == "none":
            return x
        if isinstance(position, int):
            self.check(position + n)
            if position + n <= self._rows:
                return x + self.positions[position : position + n]
        elif self._kind == "absolute":
            return x + mx.slice(self.positions, position[None], [0], [n, x.shape[2]])
        return x + self.positions[(mx.arange(n) + position) % self._rows]

    def check(self, length: int) -> None:
        """Refuse sequences that are longer than the position table."""
        require(
            self._kind != "absolute" or length <= self._rows,
            f"length={length}: longer than the position table, max_len={self._rows}; shorten the input, "
            "or train with positions='block', which has no limit",
        )

    def readout(self, y: mx.array) -> mx.array:
        """Logits (B, n, outputs) of outputs (B, n, D)."""
        y = self.norm(y)
        return y @ (self.head if "head" in self else self.tokens.T)


def wanted(length: int, last: int | None) -> int:
    """The number of final positions to read: ``last``, or all of ``length``."""
    require(length >= 1, "tokens: the sequence is empty")
    last = length if last is None else last
    require(1 <= last <= length, f"last={last}: must lie in 1 … {length}, the length of the input")
    return last
