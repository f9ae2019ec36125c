"""A layer: initialisation, and what its dropout scales."""

import math
from functools import partial

from mlx_rtx.model.dropout import DropoutScales
from mlx_rtx.model.layer import TransformerLayer
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
import pytest

from tiny import make_config, make_model


@pytest.mark.parametrize("layers", [1, 3])
def test_initial_weights(layers):
    """N(0, 0.02²), or N(0, 0.02²/(2r)) for output matrices of r stacked layers, within 5 std errors; gains are 1."""
    mx.random.seed(0)
    layer = TransformerLayer(make_config(dim=64, layers=layers))
    for name, weight in flat(layer.parameters()).items():
        values = np.array(weight)
        if values.ndim == 1:
            assert (values == 1).all(), name
            continue
        std = 0.02 / math.sqrt(2 * layers) if name in ("attention_out", "mlp_out") else 0.02
        assert abs(values.mean()) < 5 * std / math.sqrt(values.size), name
        assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * values.size)), name
        within = (np.abs(values) < std).mean()  # 68.3 % for a normal distribution, 57.7 % for a uniform one
        assert abs(within - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / values.size), name


def make_run(rows, mask):
    """Return a layer on the last rows of windows as a function of its dropout, the windows (2, N, 8), and N."""
    layer, N = make_model(layers=1).layers[0].tau, 8
    x = mx.random.normal((2, N, 8), key=mx.random.key(1))
    weights = layer.fold_weights(layer.parameters())
    above = mx.where(mx.arange(N)[:, None] < mx.arange(N), -mx.inf, 0.0)[N - (rows or N) :]
    return partial(layer, x, weights, rows, mask if mask == "causal" else above), x, N


@pytest.mark.parametrize("rows", [None, 3, 1])
@pytest.mark.parametrize("mask", ["causal", "additive"])
def test_dropout_scales_attention_weights_after_the_softmax(rows, mask):
    """Equal scales multiply what attention adds; a scale of 0 removes a row's contribution and changes no other."""
    run, x, N = make_run(rows, mask)
    n = rows or N

    def added(scales):
        dropout = DropoutScales(None, mx.zeros((2 * n, 8)), scales)
        return run(dropout) - x[:, N - n :]

    ones = mx.ones((2, 2, n, N))
    whole = make_run(rows, "causal")[0](DropoutScales(None, mx.zeros((2 * n, 8)))) - x[:, N - n :]
    assert mx.allclose(added(ones), whole, atol=1e-5)
    assert mx.allclose(added(2 * ones), 2 * whole, atol=1e-5)
    a, b = (mx.random.uniform(shape=ones.shape, key=mx.random.key(i)) for i in (2, 3))
    assert mx.allclose(added(a + b), added(a) + added(b), atol=1e-5)
    assert mx.abs(added(a) - added(b)).max() > 1e-3


@pytest.mark.parametrize("rows", [None, 3, 1])
@pytest.mark.parametrize("mask", ["causal", "additive"])
def test_dropout_scales_the_output_of_each_branch(rows, mask):
    """x + a ⊙ attention(x), then + b ⊙ MLP of the result: each output is linear in its own scales."""
    layer, x, N = make_run(rows, mask)
    n = rows or N

    def run(attention, mlp):
        return layer(DropoutScales(attention, mlp))

    def close(first, second):
        return mx.allclose(first, second, atol=1e-5)

    whole = layer(None)
    zeros, ones = mx.zeros((2 * n, 8)), mx.ones((2 * n, 8))
    a, b = 2 * mx.random.uniform(shape=(2, 2 * n, 8), key=mx.random.key(2))
    last = x[:, N - n :]
    assert close(run(ones, ones), whole)
    assert mx.array_equal(run(zeros, zeros), last)
    after_attention = run(a, zeros)
    assert close(after_attention - last, a.reshape(2, n, 8) * (run(ones, zeros) - last))
    assert close(run(a, b) - after_attention, b.reshape(2, n, 8) * (run(a, ones) - after_attention))
    for part in (run(ones, zeros) - last, run(a, ones) - after_attention):
        assert mx.abs(part).min() > 0  # otherwise there would be nothing to scale
