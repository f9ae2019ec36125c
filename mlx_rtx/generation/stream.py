"""Where generation stands between two tokens."""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import check_array
from mlx_rtx.support.trees import not_finite

import mlx.core as mx


class Stream(NamedTuple):
    """Where generation stands: the model's state, and tokens (B, n) that it has yet to be fed."""

    state: Any
    pending: mx.array

    @property
    def position(self) -> int:
        """Tokens so far, those that wait included."""
        return self.state.position + self.pending.shape[1]


def start(model: Transformer, batch_size: int = 1) -> Stream:
    """A stream before its first token."""
    return Stream(model.initial_state(batch_size), mx.zeros((batch_size, 0), mx.int32))


def check_stream(model: Transformer, stream: Stream, name: str = "stream") -> None:
    """Refuse what is no stream of this model, or one whose numbers are none any more.

    Args:
        model: what is to go on from it.
        stream: what is looked at; this waits for it.
        name: what it is called in the message.

    Raises:
        UserError: one line.
    """
    right = isinstance(stream, Stream)
    require(right, f"{name}: is a {type(stream).__name__}; give what an earlier call yielded (Response.stream)")
    check_array(f"{name}: pending", stream.pending, "(streams, tokens)", mx.integer)
    require(stream.pending.ndim == 2, f"{name}: pending tokens have shape {stream.pending.shape}; must be (streams, n)")
    if stream.pending.size:
        model.check_tokens(stream.pending, f"{name}: pending")
    model.check_state(stream.state, len(stream.pending))
    bad = not_finite(stream.state.layers)
    require(not bad, f"{name}: its state holds numbers that are not finite; begin anew, with the whole prompt")
