"""Embedding of tokens and positions, and the readout to logits."""

from typing import Any

from mlx_rtx.model.config import NORM_EPS, ModelConfig
from mlx_rtx.model.layer import normal
from mlx_rtx.model.lookup import exportable_lookup, lookup
from mlx_rtx.model.norms import layer_norm
from mlx_rtx.support.errors import require

import mlx.core as mx
import mlx.nn as nn


class Embedding(nn.Module):
    """Token and position embedding, and the readout, whose output head may be the token table.

    Args:
        config: sizes and the kind of positions. The position embedding of the token at index t is row t of a table of
            max_len rows ("absolute"), row t mod K of a table of K rows ("block"), that row plus row ⌊t/K⌋ of a second
            table of ⌈max_len/K⌉ rows ("axial"), or zero ("none").
        exportable: see `mlx_rtx.model.base.Implementation`.
    """

    def __init__(self, config: ModelConfig, exportable: bool = False):
        super().__init__()
        D, K = config.dim, config.block
        rows = {"absolute": config.max_len, "block": K, "axial": K, "none": 0}[config.positions]
        self.tokens = normal(config.vocab_size, D, config.embedding_std)
        if rows:
            self.positions = normal(rows, D, config.embedding_std)
        if config.positions == "axial":
            self.blocks = normal(-(-config.max_len // K), D, config.embedding_std)
        self.norm = nn.LayerNorm(D, eps=NORM_EPS, bias=False)
        if not config.tie_embeddings:
            self.head = normal(D, config.outputs)
        self._kind, self._rows = config.positions, rows
        self._lookup = exportable_lookup if exportable else lookup
        self._limit = config.max_len if config.has_limit else None

    def __call__(self, tokens: mx.array, weights: dict[str, Any], position: int | mx.array = 0) -> mx.array:
        """Embed consecutive tokens of B sequences.

        Args:
            tokens: (B, n) integers.
            weights: a tree like ``self.parameters()``.
            position: index of the first token in its sequence. If it is an array, the limit on the length is not
                checked; see `check`.

        Returns:
            (B, n, D).
        """
        x, n = self._lookup(weights["tokens"], tokens), tokens.shape[1]
        if self._kind == "none":
            return x
        if isinstance(position, int):
            self.check(position + n)
            if position + n <= self._rows and self._kind != "axial":
                return x + weights["positions"][position : position + n]
        elif self._kind == "absolute":
            return x + mx.slice(weights["positions"], position[None], [0], [n, x.shape[2]])
        at = mx.arange(n) + position
        rows = self._lookup(weights["positions"], at % self._rows)
        return x + (rows + self._lookup(weights["blocks"], at // self._rows) if self._kind == "axial" else rows)

    def check(self, length: int) -> None:
        """Raise `UserError` if a sequence of ``length`` tokens exceeds the position table."""
        require(
            self._limit is None or length <= self._limit,
            f"length={length}: longer than the position table, max_len={self._limit}; shorten the input, "
            "or train with positions='block', which has no limit",
        )

    def readout(self, y: mx.array, weights: dict[str, Any]) -> mx.array:
        """Compute logits (B, n, outputs) of layer outputs (B, n, D), with a tree like ``self.parameters()``."""
        y = layer_norm(y, weights["norm"]["weight"])
        return y @ (weights["head"] if "head" in weights else weights["tokens"].T)
