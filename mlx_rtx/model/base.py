"""What both models share: the two ends, a stack of layers between them, and how they are called."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.dropout import fresh_key
from mlx_rtx.model.embedding import Embedding, wanted

import mlx.core as mx
import mlx.nn as nn


class Transformer(nn.Module, ABC):
    """A model of whole sequences and of streams; `run`, `spans` and the step interface are its kinds' own."""

    def __init__(self, config: ModelConfig, layers: Sequence[nn.Module]):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = list(layers)

    def __call__(
        self, tokens: mx.array, last: int | None = None, close: bool = True, key: mx.array | None = None
    ) -> mx.array:
        """Logits of whole sequences.

        Args:
            tokens: (B, L) integers, any L ≥ 1.
            last: read the last ``last`` positions only; what no reading needs is not computed.
            close: end by Eq. 7; ``False`` keeps Eq. 6 in the last block, as a stream does. A regular
                transformer has no such end.
            key: random key of the dropout masks in training; from MLX's global state if not given.

        Returns:
            (B, L or last, outputs).
        """
        last = wanted(tokens.shape[1], last)
        y, _ = self.run(tokens, last=last, close=close, keys=self.dropout_keys(tokens.shape[1], key))
        return self.embedding.readout(y)

    @property
    def alphas(self) -> list[mx.array]:
        """The accumulation parameter α of each layer that has one."""
        return [layer.alpha for layer in self.layers if "alpha" in layer]

    def ready(self) -> dict:
        """The parameters as `using` takes them: what serves all blocks alike is computed once."""
        return {"embedding": self.embedding.parameters(), "layers": [layer.ready() for layer in self.layers]}

    @contextmanager
    def using(self, ready: dict) -> Iterator[None]:
        """Run with parameters that were made ready, instead of its own."""
        own = self.embedding.parameters()
        self.embedding.update(ready["embedding"])
        for layer, parts in zip(self.layers, ready["layers"], strict=True):
            layer.use(parts)
        try:
            yield
        finally:
            self.embedding.update(own)
            for layer in self.layers:
                layer.use(None)

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens that has positions; None where there is no limit."""
        return self.config.max_len if self.config.positions == "absolute" else None

    def dropout_keys(self, length: int, key: mx.array | None = None) -> mx.array | None:
        """A dropout key for each part of a sequence that draws its own masks; None when nothing is dropped."""
        if not self.training or self.config.dropout == 0:
            return None
        return mx.random.split(fresh_key() if key is None else key, self.masked_parts(length))

    @abstractmethod
    def masked_parts(self, length: int) -> int:
        """Number of parts of a sequence that draw dropout masks of their own."""

    @abstractmethod
    def run(
        self,
        tokens: mx.array,
        position: int | mx.array = 0,
        carry: list | None = None,
        last: int = 0,
        close: bool = False,
        keys: mx.array | None = None,
    ) -> tuple[mx.array, list]:
        """Run a piece of a sequence.

        Args:
            tokens: (B, n).
            position: tokens before this piece; as an array it is not checked against the position table.
            carry: what the pieces before left; None at the start.
            last: how many of the piece's final outputs to compute.
            close: the piece ends the sequence: Eq. 7.
            keys: dropout keys of the piece's masked parts, or None.

        Returns:
            (y (B, last, D), carry).
        """

    @abstractmethod
    def spans(self, length: int, segment: int | None) -> list[tuple[int, int]]:
        """Cut ``length`` tokens into the pieces, (start, end), of ``segment`` blocks that `run` takes."""

    @abstractmethod
    def initial_state(self, batch_size: int = 1) -> Any:
        """State of ``batch_size`` streams before their first token."""

    @abstractmethod
    def step(self, tokens: mx.array, state: Any) -> tuple[mx.array, Any]:
        """Feed the next tokens of a stream, any number at a time.

        Args:
            tokens: (B, n) integers.
            state: from `initial_state` or the step before; it is not changed.

        Returns:
            (logits (B, n, outputs), state): what ``model(all_tokens, close=False)`` gives there.
        """
