"""The regular transformer that the paper compares with: the same layer over the whole sequence."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_rtx.config import ModelConfig
from mlx_rtx.dropout import fresh_key, keep_factors, pairs, split_keys
from mlx_rtx.embedding import Embedding, wanted
from mlx_rtx.layer import TransformerLayer

CACHE_ROWS = 256  # the key-value cache grows by so many tokens at a time


class CacheState(NamedTuple):
    """State of a stream: tokens fed so far, keys (B, H, d, N) and values (B, H, N, d) of each layer, N ≥ position."""

    position: int
    layers: tuple[tuple[mx.array, mx.array], ...]


class RegularTransformer(nn.Module):
    """``config.layers`` causal layers over the whole sequence; same interface as the recurrent one.

    ``block`` matters for ``positions="block"`` only; ``history``, ``alpha`` and ``close`` have no meaning here.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = [TransformerLayer(config) for _ in range(config.layers)]

    @property
    def alphas(self) -> list[mx.array]:
        """No layer here has an α."""
        return []

    def __call__(
        self, tokens: mx.array, last: int | None = None, close: bool = True, key: mx.array | None = None
    ) -> mx.array:
        """Logits (B, L or last, outputs) of tokens (B, L); see `RecurrentTransformer`."""
        last = wanted(tokens.shape[1], last)
        y, _ = self.run(tokens, last=last, close=close, keys=self.dropout_keys(tokens.shape[1], key))
        return self.embedding.readout(y)

    def run(self, tokens, position=0, carry=None, last=0, close=True, keys=None):
        """The outputs (B, last, D) of whole sequences (B, L), and an empty carry."""
        (B, L), D = tokens.shape, self.config.dim
        layer_keys = split_keys(keys, 1 + len(self.layers))
        x = self.embedding(tokens)
        keep = keep_factors(layer_keys.pop(), self.config.dropout, (B, L, D))
        if keep is not None:
            x = x * keep[0]
        for layer, k in zip(self.layers, layer_keys, strict=True):
            context = None
            if layer is self.layers[-1] and last < L:
                context, x = x[:, : L - last], x[:, L - last :]
            keep = keep_factors(k, self.config.dropout, (2, *x.shape))
            x = layer(x, context, keep=pairs(keep, 1)[0])
        return x, []

    def spans(self, length: int, segment: int | None) -> list[tuple[int, int]]:
        """One piece: attention over the whole sequence cannot be cut."""
        return [(0, length)]

    def dropout_keys(self, length: int, key: mx.array | None = None) -> mx.array | None:
        """One dropout key for the sequence (1, 2); None when nothing is dropped."""
        if not self.training or self.config.dropout == 0:
            return None
        return mx.random.split(fresh_key() if key is None else key, 1)

    def initial_state(self, batch_size: int = 1) -> CacheState:
        """State of ``batch_size`` streams before their first token."""
        H = self.config.heads
        d = self.config.dim // H
        empty = mx.zeros((batch_size, H, d, 0)), mx.zeros((batch_size, H, 0, d))
        return CacheState(0, (empty,) * len(self.layers))

    def step(self, tokens: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        """Feed the next tokens (B, n) of a stream: (logits (B, n, outputs), state). The cache grows."""
        n = wanted(tokens.shape[1], None)
        at = state.position
        rows = -(-(at + n) // CACHE_ROWS) * CACHE_ROWS
        mask = mx.where(mx.arange(rows) > mx.arange(at, at + n)[:, None], -mx.inf, 0.0)
        x, caches = self.embedding(tokens, at), []
        for layer, cache in zip(self.layers, state.layers, strict=True):
            grown = rows - cache[1].shape[2]
            k = mx.pad(cache[0], [(0, 0), (0, 0), (0, 0), (0, grown)])
            v = mx.pad(cache[1], [(0, 0), (0, 0), (0, grown), (0, 0)])
            x, k, v = layer.step(x, mask, k, v, at)
            caches.append((k, v))
        return self.embedding.readout(x), CacheState(at + n, tuple(caches))
