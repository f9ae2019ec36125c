"""The recurrent transformer: tokens → embedding → stacked recurrences → readout.

Letters: B batch, L length, K block width, T = ⌈L/K⌉ blocks, D width.
"""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.dropout import draw_scales, split_keys
from mlx_rtx.model.recurrence import Recurrence, StepState
from mlx_rtx.model.segment import SegmentOutput
from mlx_rtx.support.compiled import compiled
from mlx_rtx.support.typed import require_whole

import mlx.core as mx


class State(NamedTuple):
    """State of a stream: number of tokens fed so far and one `StepState` per layer. Its size is constant."""

    position: int
    layers: tuple[StepState, ...]


class RecurrentTransformer(Transformer):
    """Recurrent transformer of arXiv 2402.14746, Eqs. 5–7.

    Args:
        config: model settings.
        implementation: see `mlx_rtx.model.base.Implementation`.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=64, dim=8, heads=2, block=4)
        >>> model = RecurrentTransformer(config)
        >>> model(mx.zeros((1, 10), mx.int32), last=3).shape
        (1, 3, 16)
    """

    @staticmethod
    def make_layer(config, implementation):
        """Return a `Recurrence`."""
        return Recurrence(config, implementation)

    def masked_parts(self, length):
        """Return T + 1: one part per block, and one for the outputs of the last block."""
        return -(-length // self.config.block) + 1

    def run(self, weights, segment, carry=None, saved=(), differentiated=False):
        """Run a segment of S = ⌈n/K⌉ blocks; see `Transformer.run`."""
        tokens, position, outputs_wanted, close, keys = segment
        (B, n), K, D = tokens.shape, self.config.block, self.config.dim
        S, r = -(-n // K), len(self.layers)
        x = self.embedding(tokens, weights.embedding, position)
        if padding := S * K - n:
            x = mx.pad(x, [(0, 0), (0, padding), (0, 0)])  # (B, S·K, D)
        layer_keys: list = [None] * r
        if keys is not None:
            own, *layer_keys = split_keys(keys, 1 + r)
            if self.config.dropout:
                scales = draw_scales(own[:-1], self.config.dropout, (B, K, D))  # (S, B, K, D)
                x = x * scales.swapaxes(0, 1).flatten(1, 2)
        unread = (n - outputs_wanted) // K if outputs_wanted else S  # leading blocks without wanted outputs
        outputs = []
        for i, layer in enumerate(self.layers):
            out = layer(
                x,
                weights.layers[i],
                carry[i] if carry else None,
                S - unread if i == r - 1 else S,
                close,
                layer_keys[i],
                saved[i] if saved else (),
                differentiated,
            )
            x = out.y
            outputs.append(out)
        skip = (n - outputs_wanted) % K
        y = x[:, skip : skip + outputs_wanted]
        carry_out = None if close else tuple(out.carry for out in outputs)
        return SegmentOutput(y, carry_out, tuple(out.saved for out in outputs))

    def spans(self, length, segment):
        """Split into segments of ``segment`` blocks, of which the last may be shorter; one segment if None."""
        size = length if segment is None else segment * self.config.block
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    def initial_state(self, batch_size: int = 1, capacity: int = 0) -> State:
        """Return the state of ``batch_size`` streams before their first token; ``capacity`` is ignored."""
        require_whole(batch_size=batch_size)
        return State(0, tuple(layer.initial_state(batch_size) for layer in self.layers))

    def carry_shapes(self, batch_size):
        """Return two shapes (B, K, D) per layer."""
        return [(batch_size, self.config.block, self.config.dim)] * 2 * self.config.layers

    def feed(self, tokens: mx.array, state: State, parameters: dict[str, Any]) -> tuple[mx.array, State]:
        """Feed tokens (B, n) block by block; return (logits (B, n, outputs) by Eq. 6, new state)."""
        K, outputs, start = self.config.block, [], 0
        position, layers = state
        while start < tokens.shape[1]:
            end = min(start + K - position % K, tokens.shape[1])
            self.embedding.check(position + end - start)
            logits, layers = compiled(self, _step)(
                parameters, tokens[:, start:end], mx.array(position), layers, position % K, position < K
            )
            outputs.append(logits)
            position, start = position + end - start, end
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), State(position, layers)


def _step(
    model: RecurrentTransformer,
    parameters: dict[str, Any],
    tokens: mx.array,
    position: mx.array,
    states: tuple[StepState, ...],
    at: int,
    first: bool,
) -> tuple[mx.array, tuple[StepState, ...]]:
    """Feed tokens of one block that start at offset ``at``; return (logits (B, n, outputs), states of the layers)."""
    of_block = model.config.positions == "block"  # then positions depend only on the constant `at`
    x, stepped = model.embedding(tokens, parameters["embedding"], at if of_block else position), []
    for layer, own, state in zip(model.layers, parameters["layers"], states, strict=True):
        x, state = layer.step(x, own, state, at, first)
        stepped.append(state)
    return model.embedding.readout(x, parameters["embedding"]), tuple(stepped)
