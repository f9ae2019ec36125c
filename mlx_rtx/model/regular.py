"""The regular transformer that the paper compares with: the same layer over the whole sequence."""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.dropout import DropoutScales, draw_scales, split_keys
from mlx_rtx.model.layer import TransformerLayer
from mlx_rtx.model.segment import SegmentOutput
from mlx_rtx.support.compiled import compiled
from mlx_rtx.support.trees import arrays
from mlx_rtx.support.typed import require_whole

import mlx.core as mx

CACHE_ROWS = 256  # tokens by which the key-value cache grows at a time


class CacheState(NamedTuple):
    """State of a stream: number of tokens fed, and per layer a key-value cache (2, B, H, N, d) of N rows."""

    position: int
    layers: tuple[mx.array, ...]


class RegularTransformer(Transformer):
    """Stack of ``config.layers`` causal layers over the whole sequence, with the interface of the recurrent model.

    `run` takes whole sequences only and returns no carry. ``block`` is used only with ``positions="block"`` and
    ``"axial"``; ``history``, ``alpha`` and ``close`` are ignored.
    """

    @staticmethod
    def make_layer(config, implementation):
        """Return a `TransformerLayer`; ``implementation`` is ignored."""
        return TransformerLayer(config)

    def masked_parts(self, length):
        """Return 1: the sequence is not divided."""
        return 1

    def run(self, weights, segment, carry=None, saved=(), differentiated=False):
        """Run a segment, which must be a whole sequence; see `Transformer.run`."""
        (B, L), D, rate = segment.tokens.shape, self.config.dim, self.config.dropout
        x = self.embedding(segment.tokens, weights.embedding)
        layer_keys: list = [None] * len(self.layers)
        if segment.keys is not None:
            own, *layer_keys = split_keys(segment.keys, 1 + len(self.layers))
            x = x * draw_scales(own, rate, (B, L, D))[0] if rate else x
        for layer, own, key in zip(self.layers, weights.layers, layer_keys, strict=True):
            n = segment.outputs_wanted if layer is self.layers[-1] else L
            dropout = None if key is None else self._draw_dropout(key, B, n, L)
            x = layer(x, layer.cast(own), n, dropout=dropout)
        return SegmentOutput(x, None, ())

    def _draw_dropout(self, key: mx.array, B: int, n: int, L: int) -> DropoutScales:
        """Draw the dropout scales of a layer that computes its last n rows, from its key (1, 2)."""
        config, weights = self.config, None
        if config.attention_dropout:
            key, of_weights = split_keys(key, 2)
            weights = draw_scales(of_weights, config.attention_dropout, (B, config.heads, n, L))
        outputs = draw_scales(key, config.dropout, (2, B, n, config.dim))[0] if config.dropout else None
        return DropoutScales.of(outputs, weights)

    def spans(self, length, segment):
        """Return one segment: attention over the whole sequence cannot be split."""
        return [(0, length)]

    def initial_state(self, batch_size: int = 1, capacity: int = 0) -> CacheState:
        """Return the state of ``batch_size`` streams before their first token, with caches for ``capacity`` tokens."""
        require_whole(batch_size=batch_size)
        require_whole(least=0, capacity=capacity)
        H = self.config.heads
        empty = mx.zeros((2, batch_size, H, _rows(capacity), self.config.dim // H))
        return CacheState(0, (empty,) * len(self.layers))

    def capacity(self, state):
        """Return the number of rows of the caches, or of tokens fed if that is larger."""
        return max([state.position, *(cache.shape[3] for cache in arrays(state.layers) if cache.ndim == 5)])

    def carry_shapes(self, batch_size):
        """Return no shapes: there is no carry."""
        return []

    def feed(self, tokens: mx.array, state: CacheState, parameters: dict[str, Any]) -> tuple[mx.array, CacheState]:
        """Feed tokens (B, n); return (logits (B, n, outputs), new state)."""
        position, caches = state
        end = position + tokens.shape[1]
        self.embedding.check(end)
        if (grown := _rows(end) - caches[0].shape[3]) > 0:  # padding by 0 rows would still copy the cache
            caches = tuple(mx.pad(cache, [(0, 0)] * 3 + [(0, grown), (0, 0)]) for cache in caches)
        logits, caches = compiled(self, _step)(parameters, tokens, mx.array(position), caches)
        return logits, CacheState(end, caches)


def _rows(tokens: int) -> int:
    """Return the number of rows N of a cache that holds ``tokens`` tokens."""
    return -(-tokens // CACHE_ROWS) * CACHE_ROWS


def _step(
    model: RegularTransformer,
    parameters: dict[str, Any],
    tokens: mx.array,
    position: mx.array,
    caches: tuple[mx.array, ...],
) -> tuple[mx.array, tuple[mx.array, ...]]:
    """Feed tokens, for which the caches must be large enough; return (logits (B, n, outputs), new caches)."""
    last = position + mx.arange(tokens.shape[1])[:, None]  # last row that each token attends to
    mask = mx.where(mx.arange(caches[0].shape[3]) > last, -mx.inf, 0.0)
    x, written = model.embedding(tokens, parameters["embedding"], position), []
    for layer, own, cache in zip(model.layers, parameters["layers"], caches, strict=True):
        x, cache = layer.step(x, own, mask, cache, lambda rows, new: mx.slice_update(rows, new, position[None], [3]))
        written.append(cache)
    return model.embedding.readout(x, parameters["embedding"]), tuple(written)
