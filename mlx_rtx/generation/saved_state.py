"""Saves and loads streams, to continue generation later."""

from pathlib import Path

from mlx_rtx.generation.stream import Stream, check_stream
from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import as_path, sha256
from mlx_rtx.support.safetensors import open_arrays, write_arrays
from mlx_rtx.support.trees import flat
from mlx_rtx.support.typed import shown

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

LAST_POSITION = 2 * 10**9  # largest valid number of tokens of a stream


def fingerprint(model: Transformer) -> str:
    """Return the SHA-256 of a model's settings and weights."""
    weights = [part for name, array in flat(model.parameters()).items() for part in (name.encode(), np.array(array))]
    return sha256(repr(model.config).encode(), *weights)


def save_stream(path: Path, model: Transformer, stream: Stream) -> None:
    """Write ``stream`` of ``model`` to a file, whose size is constant for a recurrent model.

    Raises:
        UserError: if the file cannot be written, or the stream is invalid.
    """
    path = as_path("path", path, "a file")
    check_stream(model, stream)
    arrays = {"layers." + name: array for name, array in flat(stream.state.layers).items()}
    metadata = {"model": fingerprint(model), "position": str(stream.state.position)}
    write_arrays(path, {**arrays, "pending": stream.pending}, metadata)


def load_stream(path: Path, model: Transformer) -> Stream:
    """Read a stream that `save_stream` wrote.

    Raises:
        UserError: if the file is missing, truncated or changed, or belongs to another model.
    """
    path = as_path("path", path, "a file")
    with open_arrays(path) as file:
        require(
            file.metadata.get("model") == fingerprint(model),
            f"{path}: is the state of another model; name its own model, or another --state-file",
        )
        text, waiting = file.metadata.get("position", ""), file.arrays.get("pending")
        number = text.isascii() and text.isdecimal() and len(text) <= len(str(LAST_POSITION))
        limit = LAST_POSITION if model.limit is None else model.limit
        valid = number and int(text) <= limit
        require(valid, f"{path}: position={shown(text)}: must lie in 0 … {limit:,}; start a new stream")
        position, (batch, n) = int(text), waiting.shape if waiting and len(waiting.shape) == 2 else (1, 0)
        state = model.initial_state(max(batch, 1), position)
        expected = {"layers." + name: array for name, array in flat(state.layers).items()}
        arrays = file.read({**expected, "pending": mx.zeros((max(batch, 1), n), mx.int32)})
    pending = arrays["pending"]
    known = (pending >= 0) & (pending < model.config.vocab_size)
    require(bool(known.all()), f"{path}: contains tokens outside its model's vocabulary; start a new stream")
    layers = tree_map_with_path(lambda name, _: arrays[f"layers.{name}"], state.layers)
    return Stream(type(state)(position, layers), pending)
