"""The state of generation between two tokens."""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import check_array
from mlx_rtx.support.trees import not_finite

import mlx.core as mx


class Stream(NamedTuple):
    """State of generation: the model's state, and pending tokens (B, n), which have not been fed to it yet."""

    state: Any
    pending: mx.array

    @property
    def position(self) -> int:
        """Number of tokens so far, including pending ones."""
        return self.state.position + self.pending.shape[1]


def start(model: Transformer, batch_size: int = 1) -> Stream:
    """Return the stream before the first token."""
    return Stream(model.initial_state(batch_size), mx.zeros((batch_size, 0), mx.int32))


def check_stream(model: Transformer, stream: Stream, name: str = "stream") -> None:
    """Check that a stream belongs to this model and is finite; waits for its arrays.

    Args:
        model: the model that will continue it.
        stream: the stream.
        name: its name in error messages.

    Raises:
        UserError: if the stream is invalid.
    """
    right = isinstance(stream, Stream)
    require(right, f"{name}: is a {type(stream).__name__}; give the Response.stream of an earlier call")
    check_array(f"{name}: pending", stream.pending, "(streams, tokens)", mx.integer)
    require(stream.pending.ndim == 2, f"{name}: pending tokens have shape {stream.pending.shape}; must be (streams, n)")
    if stream.pending.size:
        model.check_tokens(stream.pending, f"{name}: pending")
    model.check_state(stream.state, len(stream.pending))
    bad = not_finite(stream.state.layers)
    require(not bad, f"{name}: its state contains numbers that are not finite; start again with the whole prompt")
