"""The recurrent transformer: tokens → embedding → stacked recurrences → readout.

Letters: B batch, L length, K block width, T = ⌈L/K⌉ blocks, D width.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_rtx.config import ModelConfig
from mlx_rtx.dropout import fresh_key, keep_factors, split_keys
from mlx_rtx.embedding import Embedding, wanted
from mlx_rtx.recurrence import Carry, Recurrence, StepState


class State(NamedTuple):
    """State of a stream: tokens fed so far and one `StepState` a layer. Its size is constant."""

    position: int
    layers: tuple[StepState, ...]


class RecurrentTransformer(nn.Module):
    """Recurrent transformer of arXiv 2402.14746, Eqs. 5–7.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=64, dim=8, heads=2, block=4)
        >>> model = RecurrentTransformer(config)
        >>> model(mx.zeros((1, 10), mx.int32), last=3).shape
        (1, 3, 16)
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = [Recurrence(config) for _ in range(config.layers)]

    @property
    def alphas(self) -> list[mx.array]:
        """The accumulation parameter α of each layer."""
        return [layer.alpha for layer in self.layers]

    def __call__(
        self, tokens: mx.array, last: int | None = None, close: bool = True, key: mx.array | None = None
    ) -> mx.array:
        """Logits of whole sequences.

        Args:
            tokens: (B, L) integers, any L ≥ 1.
            last: read the last ``last`` positions only; what no reading needs is not computed.
            close: end by Eq. 7; ``False`` keeps Eq. 6 in the last block, as a stream does.
            key: random key of the dropout masks in training; from MLX's global state if not given.

        Returns:
            (B, L or last, outputs).
        """
        last = wanted(tokens.shape[1], last)
        y, _ = self.run(tokens, last=last, close=close, keys=self.dropout_keys(tokens.shape[1], key))
        return self.embedding.readout(y)

    def run(
        self,
        tokens: mx.array,
        position: int = 0,
        carry: list[Carry] | None = None,
        last: int = 0,
        close: bool = False,
        keys: mx.array | None = None,
    ) -> tuple[mx.array, list[Carry]]:
        """Run a piece of a sequence that begins with a block.

        Args:
            tokens: (B, n); only the sequence's last piece may end inside a block.
            position: tokens before this piece, a multiple of K.
            carry: what the pieces before left, one `Carry` a layer; None at the start.
            last: how many of the piece's final outputs to compute.
            close: the piece ends the sequence: Eq. 7.
            keys: a dropout key for each block of the piece (⌈n/K⌉, 2), or None.

        Returns:
            (y (B, last, D), carry).
        """
        (B, n), K, D = tokens.shape, self.config.block, self.config.dim
        S, r = -(-n // K), len(self.layers)
        layer_keys = split_keys(keys, 1 + r)
        x = mx.pad(self.embedding(tokens, position), [(0, 0), (0, S * K - n), (0, 0)])
        keep = keep_factors(layer_keys.pop(), self.config.dropout, (B, K, D))  # (S, B, K, D)
        if keep is not None:
            x = x * keep.swapaxes(0, 1).flatten(1, 2)
        carries = []
        for i, layer in enumerate(self.layers):
            unread = (n - last) // K if last else S  # leading blocks of the top layer that no reading needs
            read = S - unread if i == r - 1 else S
            x, out = layer(x, carry[i] if carry else None, read, close, layer_keys[i])
            carries.append(out)
        skip = (n - last) % K
        return x[:, skip : skip + last], carries

    def spans(self, length: int, segment: int | None) -> list[tuple[int, int]]:
        """Cut ``length`` tokens into pieces of ``segment`` blocks: their (start, end)."""
        size = length if segment is None else segment * self.config.block
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    def dropout_keys(self, length: int, key: mx.array | None = None) -> mx.array | None:
        """One dropout key for each block of a sequence (T, 2); None when nothing is dropped."""
        if not self.training or self.config.dropout == 0:
            return None
        return mx.random.split(fresh_key() if key is None else key, -(-length // self.config.block))

    def initial_state(self, batch_size: int = 1) -> State:
        """State of ``batch_size`` streams before their first token."""
        return State(0, tuple(layer.initial_state(batch_size) for layer in self.layers))

    def step(self, tokens: mx.array, state: State) -> tuple[mx.array, State]:
        """Feed the next tokens of a stream, any number at a time.

        Args:
            tokens: (B, n) integers.
            state: from `initial_state` or the step before; it is not changed.

        Returns:
            (logits (B, n, outputs), state): what ``model(all_tokens, close=False)`` gives there.
        """
        K, outputs, start = self.config.block, [], 0
        wanted(tokens.shape[1], None)
        position, layers = state
        while start < tokens.shape[1]:
            end = min(start + K - position % K, tokens.shape[1])
            x = self.embedding(tokens[:, start:end], position)
            stepped = []
            for layer, before in zip(self.layers, layers, strict=True):
                x, after = layer.step(x, before, position)
                stepped.append(after)
            layers = tuple(stepped)
            outputs.append(x)
            position, start = position + end - start, end
        return self.embedding.readout(mx.concatenate(outputs, axis=1)), State(position, layers)
