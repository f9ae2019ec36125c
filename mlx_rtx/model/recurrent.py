"""The recurrent transformer: tokens → embedding → stacked recurrences → readout.

Letters: B batch, L length, K block width, T = ⌈L/K⌉ blocks, D width.
"""

from typing import NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.dropout import keep_factors, split_keys
from mlx_rtx.model.embedding import wanted
from mlx_rtx.model.recurrence import Recurrence, StepState
from mlx_rtx.support.compiled import compiled

import mlx.core as mx


class State(NamedTuple):
    """State of a stream: tokens fed so far and one `StepState` a layer. Its size is constant."""

    position: int
    layers: tuple[StepState, ...]


class RecurrentTransformer(Transformer):
    """Recurrent transformer of arXiv 2402.14746, Eqs. 5–7.

    A piece that `run` takes begins with a block, and only the sequence's last one may end inside a
    block. Its carry is one `mlx_rtx.model.recurrence.Carry` a layer; dropout masks belong to blocks.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=64, dim=8, heads=2, block=4)
        >>> model = RecurrentTransformer(config)
        >>> model(mx.zeros((1, 10), mx.int32), last=3).shape
        (1, 3, 16)
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config, [Recurrence(config) for _ in range(config.layers)])

    def masked_parts(self, length):
        """The blocks, T, and what reads the last one."""
        return -(-length // self.config.block) + 1

    def run(self, tokens, position=0, carry=None, last=0, close=False, keys=None):
        """Run S = ⌈n/K⌉ blocks; see `Transformer.run`."""
        (B, n), K, D = tokens.shape, self.config.block, self.config.dim
        S, r = -(-n // K), len(self.layers)
        x = self.embedding(tokens, position)
        if padding := S * K - n:
            x = mx.pad(x, [(0, 0), (0, padding), (0, 0)])
        layer_keys: list = [None] * r
        if keys is not None:
            own, *layer_keys = split_keys(keys, 1 + r)
            keep = keep_factors(own[:-1], self.config.dropout, (B, K, D))  # (S, B, K, D)
            x = x * keep.swapaxes(0, 1).flatten(1, 2)
        carries = []
        for i, layer in enumerate(self.layers):
            unread = (n - last) // K if last else S  # leading blocks of the top layer that no reading needs
            read = S - unread if i == r - 1 else S
            x, out = layer(x, carry[i] if carry else None, read, close, layer_keys[i])
            carries.append(out)
        skip = (n - last) % K
        return x[:, skip : skip + last], carries

    def spans(self, length, segment):
        """Pieces of ``segment`` whole blocks, the last one shorter; one piece for None."""
        size = length if segment is None else segment * self.config.block
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    def initial_state(self, batch_size: int = 1) -> State:
        """State of ``batch_size`` streams before their first token."""
        return State(0, tuple(layer.initial_state(batch_size) for layer in self.layers))

    def step(self, tokens: mx.array, state: State) -> tuple[mx.array, State]:
        """Feed tokens (B, n), block by block: (logits (B, n, outputs) by Eq. 6, state)."""
        K, outputs, start = self.config.block, [], 0
        wanted(tokens.shape[1], None)
        position, layers = state
        while start < tokens.shape[1]:
            end = min(start + K - position % K, tokens.shape[1])
            self.embedding.check(position + end - start)
            logits, layers = compiled(self, _step)(
                tokens[:, start:end], mx.array(position), layers, position % K, position < K
            )
            outputs.append(logits)
            position, start = position + end - start, end
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), State(position, layers)


def _step(
    model: RecurrentTransformer,
    tokens: mx.array,
    position: mx.array,
    layers: tuple[StepState, ...],
    at: int,
    first: bool,
) -> tuple[mx.array, tuple[StepState, ...]]:
    """Feed tokens that stand at ``at`` … of one block: logits (B, n, outputs) and the layers' states."""
    of_block = model.config.positions == "block"  # then the place is known beforehand
    x, stepped = model.embedding(tokens, at if of_block else position), []
    for layer, before in zip(model.layers, layers, strict=True):
        x, after = layer.step(x, StepState(*before), at, first)
        stepped.append(after)
    return model.embedding.readout(x), tuple(stepped)
