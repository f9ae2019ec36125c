"""Arrays are read back as written, also if they are views."""

from mlx_rtx.support.safetensors import open_arrays, write_arrays

import mlx.core as mx
import numpy as np


def test_views_of_a_larger_array_are_written_correctly(tmp_path):
    """On CUDA a scalar that was the last element of a vector was written as another one."""
    vector = mx.random.normal((1001,), key=mx.random.key(0)) + 1
    expected = np.array(vector)
    views = {"matrix": vector[:600].reshape(20, 30), "vector": vector[600:1000], "scalar": vector[1000:].reshape(())}
    write_arrays(tmp_path / "views.safetensors", views, {"note": "kept"})
    with open_arrays(tmp_path / "views.safetensors") as file:
        found = file.read(views)
        assert file.metadata["note"] == "kept"
    assert found["scalar"].shape == ()
    assert np.array_equal(np.concatenate([np.array(found[name]).reshape(-1) for name in views]), expected)
