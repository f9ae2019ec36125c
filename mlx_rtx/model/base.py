"""Base class of both models: embedding, stacked layers, readout, and the interface to call them.

As usual in MLX, the module holds the parameters. Methods that compute take them as an argument: `run` and `step` are
pure functions of (weights, tokens, carry), and the module only adds its configuration.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.dropout import fresh_key
from mlx_rtx.model.embedding import Embedding
from mlx_rtx.model.segment import Carries, Saved, Segment, SegmentOutput, resolve_last
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import IGNORED, check_indices, check_key
from mlx_rtx.support.trees import arrays
from mlx_rtx.support.typed import require_whole

import mlx.core as mx
import mlx.nn as nn

# auto: fused kernels if available, else plain; plain: MLX operations;
# exportable: plain without custom gradients (`mx.custom_function`), which `mx.export_function` cannot export.
Implementation = Literal["auto", "plain", "exportable"]


class ModelWeights(NamedTuple):
    """A model's parameters in the form that `run` takes: computations that all blocks share are done once."""

    embedding: dict[str, Any]  # parameters of `Embedding`
    layers: tuple  # one entry per layer, as returned by the layer's `fold_weights`


class Transformer(nn.Module, ABC):
    """Abstract model that processes whole sequences or streams; subclasses implement `run`, `spans` and `feed`.

    Args:
        config: model settings.
        implementation: ``"auto"``, ``"plain"`` or ``"exportable"``; see `Implementation`.
    """

    def __init__(self, config: ModelConfig, implementation: Implementation = "auto"):
        super().__init__()
        right = isinstance(config, ModelConfig)
        require(right, f"config: is a {type(config).__name__}; give a ModelConfig")
        kinds = get_args(Implementation)
        require(implementation in kinds, f"implementation={implementation!r}: must be one of {', '.join(kinds)}")
        self.config = config
        self.implementation = implementation
        layers = [self.make_layer(config, implementation) for _ in range(config.layers)]  # initialised first
        self.embedding = Embedding(config, exportable=implementation == "exportable")
        self.layers = layers

    def __call__(
        self, tokens: mx.array, last: int | None = None, close: bool = True, key: mx.array | None = None
    ) -> mx.array:
        """Compute the logits of whole sequences.

        Args:
            tokens: (B, L) integers, any L ≥ 1.
            last: return logits of the last ``last`` positions only and skip work that they do not need; all by
                default.
            close: use Eq. 7 for the last block; ``False`` uses Eq. 6 there too, as a stream does. Ignored by a
                regular transformer.
            key: random key of the dropout masks in training; taken from MLX's global random state by default.

        Returns:
            Logits (B, L or last, outputs).

        Raises:
            UserError: if tokens have the wrong type or shape, are outside the vocabulary, or are more than there are
                positions. Checking the values waits for their computation; it is skipped while the call is traced.
        """
        self.check_tokens(tokens)
        L, weights = tokens.shape[1], self.fold_weights()
        keys = self.dropout_keys(L, key)
        y = self.run(weights, Segment(tokens, 0, resolve_last(L, last), close, keys)).y
        return self.embedding.readout(y, weights.embedding)

    @staticmethod
    @abstractmethod
    def make_layer(config: ModelConfig, implementation: Implementation) -> nn.Module:
        """Return one layer of the stack with newly initialised weights."""

    @property
    def alphas(self) -> list[mx.array]:
        """Mean accumulation parameter α, in [0, 1], of each layer that has one."""
        return [layer.mean_alpha for layer in self.layers if "alpha" in layer]

    def fold_weights(self, parameters: dict[str, Any] | None = None) -> ModelWeights:
        """Return the weights that `run` takes.

        Args:
            parameters: a tree like ``self.parameters()``, which is the default.
        """
        parameters = self.parameters() if parameters is None else parameters
        layers = zip(self.layers, parameters["layers"], strict=True)
        return ModelWeights(parameters["embedding"], tuple(layer.fold_weights(own) for layer, own in layers))

    @property
    def limit(self) -> int | None:
        """Maximum sequence length in tokens, or None if unlimited."""
        return self.config.max_len if self.config.has_limit else None

    def dropout_keys(self, length: int, key: mx.array | None = None) -> mx.array | None:
        """Return one dropout key per part of a sequence (see `masked_parts`), or None if dropout is off."""
        if key is not None:
            check_key(key)
        if not self.training or self.config.dropout == self.config.attention_dropout == 0:
            return None
        return mx.random.split(fresh_key() if key is None else key, self.masked_parts(length))

    @abstractmethod
    def masked_parts(self, length: int) -> int:
        """Return the number of parts of a sequence that draw independent dropout masks."""

    @abstractmethod
    def run(
        self,
        weights: ModelWeights,
        segment: Segment,
        carry: Carries | None = None,
        saved: Sequence[Saved] = (),
        differentiated: bool = False,
    ) -> SegmentOutput:
        """Run a segment. A pure function of its arguments.

        Args:
            weights: from `fold_weights`.
            segment: tokens and how to process them.
            carry: carry of the previous segment, or None at the start of a sequence.
            saved: outputs of the fused scans that an earlier run of this segment returned, one entry per layer, so
                that the scans are not run again. For a backward pass only.
            differentiated: whether a gradient of this call will be taken.
        """

    @abstractmethod
    def spans(self, length: int, segment: int | None) -> list[tuple[int, int]]:
        """Split ``length`` tokens into segments (start, end) of ``segment`` blocks, or into one segment if None."""

    def check_tokens(self, tokens: mx.array, name: str = "tokens") -> None:
        """Raise `UserError` unless ``tokens`` is a batch (B, L) of indices into the vocabulary."""
        V = self.config.vocab_size
        check_indices(name, tokens, V, f"the vocabulary of {V:,}")

    def check_targets(self, targets: mx.array, masked: bool = False) -> None:
        """Raise `UserError` unless ``targets`` is a batch (B, n) of output classes, or `IGNORED` if ``masked``."""
        count = self.config.outputs
        if not masked:
            of = f"the {count:,} classes; there is no ignored class: pass the final positions only"
            check_indices("targets", targets, count, of)
        else:
            check_indices("targets", targets, count, f"the {count:,} classes and {IGNORED}, which is ignored", IGNORED)

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raise `UserError` unless ``state`` belongs to this model and to ``batch_size`` streams."""
        right = type(state) is type(self.initial_state(batch_size))
        require(right, f"state: is a {type(state).__name__}; pass the result of initial_state or of the previous step")
        require_whole(least=0, position=state.position)
        require(state.position < 2**31, f"position={state.position}: must be below 2^31; start a new stream")
        found, expected = (
            [(array.shape, array.dtype) for array in arrays(one.layers)]
            for one in (state, self.initial_state(batch_size, self.capacity(state)))
        )
        require(
            found == expected,
            f"state: does not fit this model with {batch_size} streams; start with initial_state({batch_size})",
        )

    def capacity(self, state: Any) -> int:
        """Return the number of tokens for which ``state`` has memory allocated, at least the number fed so far."""
        return state.position

    @abstractmethod
    def initial_state(self, batch_size: int = 1, capacity: int = 0) -> Any:
        """Return the state of ``batch_size`` streams before their first token, with memory for ``capacity`` tokens."""

    @abstractmethod
    def carry_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Return the shapes of all arrays that ``batch_size`` sequences carry between segments."""

    def step(self, tokens: mx.array, state: Any, parameters: dict[str, Any] | None = None) -> tuple[mx.array, Any]:
        """Feed the next tokens of a stream, any number at a time. A pure function of its arguments.

        Args:
            tokens: (B, n) integers.
            state: from `initial_state` or the previous step; not modified.
            parameters: a tree like ``self.parameters()``, which is the default.

        Returns:
            (logits (B, n, outputs), new state). The logits are those of ``model(all_tokens, close=False)`` at these
            positions.

        Raises:
            UserError: as `__call__`, or if the state belongs to another model or another number of streams.
        """
        self.check_tokens(tokens)
        self.check_state(state, len(tokens))
        return self.feed(tokens, state, self.parameters() if parameters is None else parameters)

    @abstractmethod
    def feed(self, tokens: mx.array, state: Any, parameters: dict[str, Any]) -> tuple[mx.array, Any]:
        """Do the same as `step` without checking arguments, for inner loops that pass the parameters themselves."""
