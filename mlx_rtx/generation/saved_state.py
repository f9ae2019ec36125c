"""A stream on disk: where generation stands, to go on from there another day."""

from pathlib import Path

from mlx_rtx.generation.decoding import Stream, start
from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import sha256
from mlx_rtx.support.safetensors import read_arrays, write_arrays
from mlx_rtx.support.trees import flat

import numpy as np
from mlx.utils import tree_map_with_path


def fingerprint(model: Transformer) -> str:
    """sha256 of a model's settings and weights."""
    weights = [part for name, array in flat(model.parameters()).items() for part in (name.encode(), np.array(array))]
    return sha256(repr(model.config).encode(), *weights)


def save_stream(path: Path, model: Transformer, stream: Stream) -> None:
    """Write ``stream`` of ``model``: one file, of constant size for a recurrent model."""
    arrays = {"layers." + name: array for name, array in flat(stream.state.layers).items()}
    metadata = {"model": fingerprint(model), "position": str(stream.state.position)}
    write_arrays(path, {**arrays, "pending": stream.pending}, metadata)


def load_stream(path: Path, model: Transformer) -> Stream:
    """Read what `save_stream` wrote.

    Raises:
        UserError: the file is missing, cut off, or of another model.
    """
    arrays, metadata = read_arrays(path)
    require(
        metadata.get("model") == fingerprint(model),
        f"{path}: is the state of another model; name its own model, or another --state-file",
    )
    pending = arrays["pending"]
    empty = start(model, len(pending)).state
    layers = tree_map_with_path(lambda name, _: arrays[f"layers.{name}"], empty.layers)
    return Stream(type(empty)(int(metadata["position"]), layers), pending)
