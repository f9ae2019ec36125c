"""The lookup gradient used on GPUs, tested on the CPU: it equals the scatter-add."""

from mlx_rtx import loss_and_grad
from mlx_rtx.model import lookup
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
import pytest

from tiny import K, make_model, make_tokens


@pytest.fixture
def atomic(monkeypatch):
    monkeypatch.setattr(lookup, "scatter_is_atomic", lambda: True)


@pytest.mark.parametrize("dtype", [mx.uint8, mx.uint32, mx.int64])
@pytest.mark.parametrize("rows", [3, 300])
def test_gradient_is_the_sum_over_equal_indices(rows, dtype, atomic):
    table = mx.random.normal((rows, 5), key=mx.random.key(0))
    indices = mx.random.randint(0, min(rows, 256), (2, 400), key=mx.random.key(1)).astype(dtype)
    factors = mx.random.normal((2, 400, 5), key=mx.random.key(2))
    assert mx.array_equal(lookup.lookup(table, indices), table[indices])

    gradient = mx.grad(lambda table: (lookup.lookup(table, indices) * factors).sum())(table)
    expected = np.zeros(table.shape)
    np.add.at(expected, np.array(indices), np.array(factors))
    assert np.allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize(("rows", "products"), [(lookup.LARGEST, 1), (lookup.LARGEST + 1, 0)])
def test_products_are_for_small_tables(rows, products, atomic, monkeypatch):
    calls = []
    monkeypatch.setattr(lookup, "_lookup", lambda table, indices: calls.append(1) or table[indices])
    lookup.lookup(mx.zeros((rows, 2)), mx.array([0]))
    assert len(calls) == products


@pytest.mark.parametrize("positions", ["absolute", "block", "axial", "none"])
def test_models_have_the_same_gradient(positions, monkeypatch):
    model, tokens = make_model(positions=positions), make_tokens(5 * K - 1)
    found = []
    for choice in (False, True):
        monkeypatch.setattr(lookup, "scatter_is_atomic", lambda choice=choice: choice)
        found.append(flat(loss_and_grad(model, tokens, tokens, segment=2)[1]))
    for name, gradient in found[0].items():
        assert np.allclose(gradient, found[1][name], rtol=1e-5, atol=1e-6), name


def test_gradient_of_bfloat16_is_summed_in_float32(atomic):
    """A sum in bfloat16 would stop at 256."""
    indices = mx.zeros((1000,), mx.int32)
    gradient = mx.grad(lambda table: lookup.lookup(table, indices).sum())(mx.zeros((2, 4), mx.bfloat16))
    assert (gradient[0] == 1000).all()
    assert (gradient[1] == 0).all()


def test_gradient_is_bitwise_reproducible():
    """On a GPU a scatter-add of these numbers would differ from run to run; on the CPU it never does."""
    table, indices = mx.zeros((3, 16)), mx.random.randint(0, 3, (50_000,), key=mx.random.key(0))
    factors = mx.random.normal((50_000, 16), key=mx.random.key(1))
    gradient = mx.grad(lambda table: (lookup.lookup(table, indices) * factors).sum())
    first = np.array(gradient(table))
    for _ in range(10):
        assert np.array_equal(gradient(table), first)
