"""Compiled functions give the same results as uncompiled ones, and no weight becomes a constant in them.

Compiling is used on Metal; these tests compile for the CPU, if a compiler is available.
"""

import shutil
import weakref

from mlx_rtx import loss_and_grad
from mlx_rtx.support import compiled

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from tiny import K, make_model, make_tokens


@pytest.fixture
def compiling(monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("MLX compiles for the CPU with g++")

    def switch(on):
        monkeypatch.setattr(compiled, "should_compile", lambda: on)

    return switch


def test_a_compiled_gradient_equals_the_plain_one_and_follows_the_weights(compiling):
    model, tokens = make_model(train_alpha=False), make_tokens(4 * K)
    for step in range(2):
        found = []
        for on in (False, True):
            compiling(on)
            found.append(loss_and_grad(model, tokens, tokens[:, -1:], 2))
        (loss, gradients), (compiled_loss, compiled_gradients) = found
        assert mx.allclose(compiled_loss, loss, rtol=1e-5)
        named = dict(tree_flatten(compiled_gradients))
        for name, gradient in tree_flatten(gradients):
            assert mx.allclose(named[name], gradient, rtol=1e-4, atol=1e-6), (step, name)
        model.update(tree_map(lambda w: 1.1 * w, model.parameters()))  # including α, which is not trained


def test_a_function_is_traced_once_per_shape_and_constant(compiling):
    model, traced = make_model(), []

    def function(model, x, constant):
        traced.append((x.shape, constant))
        return x + constant

    compiling(True)
    for shape, constant in [((1,), 1), ((2,), 1), ((1,), 2)] * 2:
        mx.eval(compiled.compiled(model, function)(mx.zeros(shape), constant))
    assert len(traced) == 3
    compiling(False)
    mx.eval(compiled.compiled(model, function)(mx.zeros((1,)), 1))
    assert len(traced) == 4


@pytest.mark.parametrize("on", [False, True])
def test_a_deleted_model_is_freed_at_once(compiling, on):
    """Otherwise arrays of deleted models would fill the memory until garbage collection."""
    compiling(on)
    model, tokens = make_model(), make_tokens(2 * K)
    mx.eval(loss_and_grad(model, tokens, tokens[:, -1:], 1))
    gone = weakref.ref(model)
    del model
    assert gone() is None
