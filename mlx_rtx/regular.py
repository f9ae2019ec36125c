"""The regular transformer that the paper compares with: the same layer over the whole sequence."""

from typing import NamedTuple

from mlx_rtx.config import ModelConfig
from mlx_rtx.dropout import keep_factors, pairs, split_keys
from mlx_rtx.embedding import wanted
from mlx_rtx.layer import TransformerLayer
from mlx_rtx.transformer import Transformer

import mlx.core as mx

CACHE_ROWS = 256  # the key-value cache grows by so many tokens at a time


class LayerCache(NamedTuple):
    """Keys (B, H, d, N) and values (B, H, N, d) that a layer keeps, with room for N tokens."""

    k: mx.array
    v: mx.array


class CacheState(NamedTuple):
    """State of a stream: tokens fed so far, and each layer's cache. It grows with the stream."""

    position: int
    layers: tuple[LayerCache, ...]


class RegularTransformer(Transformer):
    """``config.layers`` causal layers over the whole sequence; same interface as the recurrent one.

    `run` takes whole sequences only and leaves an empty carry. ``block`` matters for
    ``positions="block"`` only; ``history``, ``alpha`` and ``close`` have no meaning here.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config, [TransformerLayer(config) for _ in range(config.layers)])

    def masked_parts(self, length):
        """One: the sequence is in one piece."""
        return 1

    def run(self, tokens, position=0, carry=None, last=0, close=True, keys=None):
        """Run whole sequences; see `Transformer.run`."""
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

    def spans(self, length, segment):
        """One piece: attention over the whole sequence cannot be cut."""
        return [(0, length)]

    def initial_state(self, batch_size: int = 1) -> CacheState:
        """State of ``batch_size`` streams before their first token."""
        H = self.config.heads
        d = self.config.dim // H
        empty = LayerCache(mx.zeros((batch_size, H, d, 0)), mx.zeros((batch_size, H, 0, d)))
        return CacheState(0, (empty,) * len(self.layers))

    def step(self, tokens: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        """Feed tokens (B, n): (logits (B, n, outputs), state)."""
        n = wanted(tokens.shape[1], None)
        at = state.position
        rows = -(-(at + n) // CACHE_ROWS) * CACHE_ROWS
        mask = mx.where(mx.arange(rows) > mx.arange(at, at + n)[:, None], -mx.inf, 0.0)
        x, caches = self.embedding(tokens, at), []
        for layer, cache in zip(self.layers, state.layers, strict=True):
            k, v = cache
            if grown := rows - v.shape[2]:  # padding by nothing would copy it all
                k, v = mx.pad(k, [(0, 0)] * 3 + [(0, grown)]), mx.pad(v, [(0, 0)] * 2 + [(0, grown), (0, 0)])
            x, k, v = layer.step(x, mask, k, v, at)
            caches.append(LayerCache(k, v))
        return self.embedding.readout(x), CacheState(at + n, tuple(caches))
