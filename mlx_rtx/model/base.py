"""What both models share: the two ends, a stack of layers between them, and how they are called.

A model's parameters live in its module, as MLX has it. All that computes takes them as an argument: `run` and `step`
are functions of (weights, tokens, carry), and the module only adds its configuration.
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

# How a model computes. auto: fused kernels where they are available, else plain; plain: MLX operations;
# exportable: the same without gradients of our own, so that `mx.export_function` can write the graph down.
Implementation = Literal["auto", "plain", "exportable"]


class ModelWeights(NamedTuple):
    """A model's parameters as `run` takes them: what serves all blocks alike is computed once."""

    embedding: dict[str, Any]  # parameters of `Embedding`
    layers: tuple  # one a layer, of the layer's own type


class Transformer(nn.Module, ABC):
    """A model of whole sequences and of streams; `run`, `spans` and `feed` are its kinds' own.

    Args:
        config: its sizes and choices.
        implementation: how it computes.
    """

    def __init__(self, config: ModelConfig, implementation: Implementation = "auto"):
        super().__init__()
        right = isinstance(config, ModelConfig)
        require(right, f"config: is a {type(config).__name__}; give a ModelConfig")
        kinds = get_args(Implementation)
        require(implementation in kinds, f"implementation={implementation!r}: must be one of {', '.join(kinds)}")
        self.config = config
        self.implementation = implementation
        layers = [self.make_layer(config, implementation) for _ in range(config.layers)]  # they draw before the rest
        self.embedding = Embedding(config, exportable=implementation == "exportable")
        self.layers = layers

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

        Raises:
            UserError: tokens of another kind or shape, beyond the vocabulary, or more than there are positions for.
                Their values are looked at, which waits for them, unless the call is being traced.
        """
        self.check_tokens(tokens)
        L, weights = tokens.shape[1], self.fold_weights()
        keys = self.dropout_keys(L, key)
        y = self.run(weights, Segment(tokens, 0, resolve_last(L, last), close, keys)).y
        return self.embedding.readout(y, weights.embedding)

    @staticmethod
    @abstractmethod
    def make_layer(config: ModelConfig, implementation: Implementation) -> nn.Module:
        """One of the layers that are stacked, with fresh weights."""

    @property
    def alphas(self) -> list[mx.array]:
        """The mean accumulation parameter α of each layer that has one, in [0, 1]."""
        return [layer.mean_alpha for layer in self.layers if "alpha" in layer]

    def fold_weights(self, parameters: dict[str, Any] | None = None) -> ModelWeights:
        """The weights that `run` takes.

        Args:
            parameters: a tree like ``self.parameters()``, which are taken if not given.
        """
        parameters = self.parameters() if parameters is None else parameters
        layers = zip(self.layers, parameters["layers"], strict=True)
        return ModelWeights(parameters["embedding"], tuple(layer.fold_weights(own) for layer, own in layers))

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens that has positions; None where there is no limit."""
        return self.config.max_len if self.config.has_limit else None

    def dropout_keys(self, length: int, key: mx.array | None = None) -> mx.array | None:
        """A dropout key for each part of a sequence that draws its own masks; None when nothing is dropped."""
        if key is not None:
            check_key(key)
        if not self.training or self.config.dropout == self.config.attention_dropout == 0:
            return None
        return mx.random.split(fresh_key() if key is None else key, self.masked_parts(length))

    @abstractmethod
    def masked_parts(self, length: int) -> int:
        """Number of parts of a sequence that draw dropout masks of their own."""

    @abstractmethod
    def run(
        self,
        weights: ModelWeights,
        segment: Segment,
        carry: Carries | None = None,
        saved: Sequence[Saved] = (),
        differentiated: bool = False,
    ) -> SegmentOutput:
        """Run a segment: a pure function of its arguments.

        Args:
            weights: from `fold_weights`.
            segment: tokens and what to do with them.
            carry: from the segment before; None at the start of a sequence.
            saved: what an earlier run of this segment saved, one a layer: its scans are then not run again. Only
                for a backward pass, which needs their outputs and not their steps.
            differentiated: a gradient of this call will be taken.
        """

    @abstractmethod
    def spans(self, length: int, segment: int | None) -> list[tuple[int, int]]:
        """Cut ``length`` tokens into segments, (start, end), of ``segment`` blocks; one for None."""

    def check_tokens(self, tokens: mx.array, name: str = "tokens") -> None:
        """Refuse what are no tokens (B, L) of the vocabulary."""
        V = self.config.vocab_size
        check_indices(name, tokens, V, f"the vocabulary of {V:,}")

    def check_targets(self, targets: mx.array, masked: bool = False) -> None:
        """Refuse what are no classes (B, n) of the outputs; ``masked`` ones may be `IGNORED`."""
        count = self.config.outputs
        if not masked:
            of = f"the {count:,} classes; none is ignored, only final positions count"
            check_indices("targets", targets, count, of)
        else:
            check_indices("targets", targets, count, f"the {count:,} classes and {IGNORED}, which is ignored", IGNORED)

    def check_state(self, state: Any, batch_size: int) -> None:
        """Refuse what is no state of so many streams of this model."""
        right = type(state) is type(self.initial_state(batch_size))
        require(right, f"state: is a {type(state).__name__}; give what initial_state or the step before returned")
        require_whole(least=0, position=state.position)
        require(state.position < 2**31, f"position={state.position}: a stream is not so long; begin anew")
        found, expected = (
            [(array.shape, array.dtype) for array in arrays(one.layers)]
            for one in (state, self.initial_state(batch_size, self.room(state)))
        )
        require(
            found == expected,
            f"state: is of another model, or not of {batch_size} streams; begin with initial_state({batch_size})",
        )

    def room(self, state: Any) -> int:
        """Tokens that a state has room for, at least those that it has been fed."""
        return state.position

    @abstractmethod
    def initial_state(self, batch_size: int = 1, room: int = 0) -> Any:
        """State of ``batch_size`` streams before their first token; with ``room`` as large as after so many tokens."""

    @abstractmethod
    def carry_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of all arrays that ``batch_size`` sequences carry from segment to segment."""

    def step(self, tokens: mx.array, state: Any, parameters: dict[str, Any] | None = None) -> tuple[mx.array, Any]:
        """Feed the next tokens of a stream, any number at a time: a pure function of its arguments.

        Args:
            tokens: (B, n) integers.
            state: from `initial_state` or the step before; it is not changed.
            parameters: a tree like ``self.parameters()``, which are taken if not given.

        Returns:
            (logits (B, n, outputs), state): what ``model(all_tokens, close=False)`` gives there.

        Raises:
            UserError: see `__call__`; and a state of another model, or of another number of streams.
        """
        self.check_tokens(tokens)
        self.check_state(state, len(tokens))
        return self.feed(tokens, state, self.parameters() if parameters is None else parameters)

    @abstractmethod
    def feed(self, tokens: mx.array, state: Any, parameters: dict[str, Any]) -> tuple[mx.array, Any]:
        """`step` that checks nothing, for loops that know what they feed and gather parameters once."""
