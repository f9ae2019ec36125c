"""Fused kernels in place of plain MLX operations: their source, emulated on the CPU, and on a GPU if there is one."""

import itertools
import os
import shutil

from mlx_rtx import kernels, loss_and_grad
from mlx_rtx.kernels import FORMS, narrow, scan, source, wide

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import kernels_emulator as emulator
from tiny import K, make_model, make_tokens

NARROW, SMALL, MATRICES, WIDE = FORMS
IN_PIECES = SMALL._replace(windows=2)
VARIANTS = [
    {"history": "output", "dropout": 0.3, "attention_dropout": 0.2},
    {"history": "output", "state_norm": True, "activation": "gelu"},
    {"history": "hidden", "dropout": 0.3, "activation": "gelu"},
    {"history": "hidden", "state_norm": True, "heads": 2, "dim": 10},
    {"history": "output", "state_norm": True, "alpha_kind": "channel", "qk_norm": True},
    {"history": "hidden", "dropout": 0.3, "alpha_kind": "head", "qk_norm": True},
    {"history": "output", "attention_dropout": 0.3, "qk_norm": True},
    {"history": "hidden", "attention_dropout": 0.3, "block": 18, "positions": "block"},  # two words of bits per row
]


@pytest.fixture(params=["emulated", "gpu"])
def fused(request, monkeypatch):
    """Return a function that switches to kernels: emulated with few threads, or on a GPU if there is one."""
    on_metal = mx.metal.is_available() and os.environ["MLX_RTX_KERNELS"] == "1"
    if request.param == "gpu" and not (mx.cuda.is_available() or on_metal):
        pytest.skip("needs an NVIDIA GPU, or Metal and MLX_RTX_KERNELS=1")
    if request.param == "emulated":
        if shutil.which("g++") is None:
            pytest.skip("the emulation is compiled with g++")
        monkeypatch.setattr(source, "make_kernel", emulator.make_kernel)
        monkeypatch.setattr(mx.fast, "rms_norm", _rms_norm_of_cuda)
        monkeypatch.setattr(narrow, "thread_count", lambda K, D: 64)
    device = mx.default_device()
    mx.set_default_device(mx.cpu if request.param == "emulated" else device)  # where nothing is compiled
    for cached in (narrow._kernel, wide._launcher, scan._narrow_scan, scan._wide_scan):
        cached.cache_clear()

    def switch(form):
        if request.param == "gpu" and form == MATRICES and mx.cuda.is_available():
            pytest.skip("these matrices are Metal's")
        kernels.choose(form)
        monkeypatch.setattr(kernels, "available", lambda: True)

    yield switch
    mx.set_default_device(device)
    kernels.choose(None)
    for cached in (narrow._kernel, wide._launcher, scan._narrow_scan, scan._wide_scan):
        cached.cache_clear()


def _rms_norm_of_cuda(x, *rest, rms_norm=mx.fast.rms_norm):
    """MLX's RMS norm, which fails on empty arrays on CUDA."""
    assert x.size, "invalid argument"
    return rms_norm(x, *rest)


CASES = [
    *itertools.product((NARROW, WIDE), VARIANTS),
    *((IN_PIECES, VARIANTS[i]) for i in (0, 3)),
    *((MATRICES, variant) for variant in (VARIANTS[0], VARIANTS[7] | {"dim": 32})),
]


@pytest.mark.parametrize(("form", "variant"), CASES, ids=str)
def test_kernels_equal_plain_operations(fused, form, variant):
    length = 5 * variant.get("block", K) - 1
    model, tokens, key = make_model(**variant), make_tokens(length), mx.random.key(3)
    model.train()
    plain = {n: loss_and_grad(model, tokens, tokens[:, -n:], 2, key=key) for n in (1, length)}
    mx.eval(plain)
    fused(form)
    assert model.layers[0]._fused
    for n, (loss, gradients) in plain.items():
        for segment in (2, None):
            found, found_gradients = loss_and_grad(model, tokens, tokens[:, -n:], segment, key=key)
            assert mx.allclose(found, loss, rtol=1e-5)
            named = dict(tree_flatten(found_gradients))
            for name, gradient in tree_flatten(gradients):
                scale = max(1.0, mx.abs(gradient).max().item())
                assert mx.abs(named[name] - gradient).max().item() < 1e-5 * scale, (n, segment, name)


@pytest.mark.soak
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_sanitizers_find_nothing(fused, form, sanitizers, monkeypatch):
    """No access out of bounds, no undefined behaviour, no data race between barriers."""
    monkeypatch.setattr(emulator, "SANITIZERS", sanitizers)
    fused(form)
    for variant in VARIANTS:
        if form == MATRICES and variant.get("dim") == 10:
            continue  # not a multiple of 8
        model, tokens = make_model(**variant), make_tokens(4 * K)
        model.train()
        mx.eval(loss_and_grad(model, tokens, tokens[:, -3:], 2, key=mx.random.key(3)))


@pytest.mark.parametrize("form", [NARROW, WIDE, IN_PIECES], ids=str)
def test_gradient_without_saved_outputs(fused, form):
    """`nn.value_and_grad` of a model runs as one segment and passes no saved outputs."""
    import mlx.nn as nn

    model, tokens = make_model(history="output"), make_tokens(3 * K)

    def gradient():
        return tree_flatten(nn.value_and_grad(model, lambda model: model(tokens).square().sum())(model)[1])

    plain = gradient()
    mx.eval(plain)
    fused(form)
    for (name, found), (_, expected) in zip(gradient(), plain, strict=True):
        assert mx.abs(found - expected).max() < 1e-5 * max(1.0, mx.abs(expected).max().item()), name


@pytest.mark.parametrize(("metal", "cuda", "asked", "expected"), [
    (True, False, None, False), (True, False, "1", True), (True, False, "0", False),
    (False, True, None, True), (False, True, "0", False), (False, False, "1", False),
])  # fmt: skip
def test_on_metal_kernels_are_opt_in(monkeypatch, metal, cuda, asked, expected):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu if metal or cuda else mx.cpu)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    if asked is None:
        monkeypatch.delenv("MLX_RTX_KERNELS", raising=False)
    else:
        monkeypatch.setenv("MLX_RTX_KERNELS", asked)
    assert kernels.available() == expected
