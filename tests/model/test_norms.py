"""Layer norm from elementary operations, for widths where MLX's gradient is wrong on CUDA, tested on the CPU."""

from mlx_rtx import loss_and_grad
from mlx_rtx.model import norms
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
import pytest

from tiny import K, make_model, make_tokens


def reference(x, gain, cotangent):
    """Return output, gradient of x and gradient of the gain in float64."""
    x, gain, cotangent = (np.array(array, dtype=np.float64) for array in (x, gain, cotangent))
    D = x.shape[-1]
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed, g = centred / deviation, cotangent * gain
    of_x = (g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True)) / deviation
    return normed * gain, of_x, (cotangent * normed).reshape(-1, D).sum(0)


@pytest.mark.parametrize("elementary", [False, True, None], ids=["fast", "elementary", "as on this device"])
@pytest.mark.parametrize("has_gain", [False, True])
@pytest.mark.parametrize("D", [2, 5, 6, 8, 13, 130, 258])
def test_output_and_gradients(D, has_gain, elementary, monkeypatch):
    if elementary is False and norms.gradient_is_wrong(D):
        pytest.skip("wrong on this device, and an illegal memory access there at some widths")
    if elementary is not None:
        monkeypatch.setattr(norms, "gradient_is_wrong", lambda D: elementary)
    x, cotangent = (3 * mx.random.normal((2, 7, D), key=mx.random.key(i)) + i for i in (0, 1))
    arguments = [x, mx.random.normal((D,), key=mx.random.key(2))] if has_gain else [x]
    (output,), gradients = mx.vjp(norms.layer_norm, arguments, [cotangent])
    expected, of_x, of_gain = reference(x, arguments[1] if has_gain else mx.ones(D), cotangent)
    assert np.allclose(output, expected, atol=2e-5)
    assert np.allclose(gradients[0], of_x, atol=2e-4)
    if has_gain:
        assert np.allclose(gradients[1], of_gain, atol=1e-4)


@pytest.mark.parametrize(("cuda", "gpu", "wrong"), [(True, True, True), (True, False, False), (False, True, False)])
def test_where_the_gradient_is_wrong(cuda, gpu, wrong, monkeypatch):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu if gpu else mx.cpu)
    assert [norms.gradient_is_wrong(D) for D in (96, 97, 98, 99, 100)] == [False, wrong, wrong, wrong, False]


def test_models_use_it_everywhere(kind, monkeypatch):
    """With elementary operations no gradient goes through MLX's layer norm, and the numbers stay the same."""
    model, tokens = make_model(kind), make_tokens(5 * K - 1)
    expected = flat(loss_and_grad(model, tokens, tokens, segment=2)[1])
    monkeypatch.setattr(norms, "gradient_is_wrong", lambda D: True)
    monkeypatch.delattr(mx.fast, "layer_norm")
    for name, gradient in flat(loss_and_grad(model, tokens, tokens, segment=2)[1]).items():
        assert np.allclose(gradient, expected[name], rtol=1e-4, atol=1e-5), name
