"""The kernels' sources as MLX passes them to Metal's compiler, obtained without a Mac.

MLX accepts `mx.fast.metal_kernel` while a function is exported, because nothing runs then; with ``verbose=True`` it
prints the complete source, including the signature.
"""

import ctypes
import os
import sys
import tempfile
from contextlib import contextmanager

from mlx_rtx import kernels
from mlx_rtx.kernels import narrow, scan, wide
from mlx_rtx.kernels.options import Options, ScanInputs

import mlx.core as mx
import pytest

CACHED = (narrow._kernel, wide._launcher, scan._narrow_scan, scan._wide_scan)


def trace(form, options, B, S, K, D, dropout=False):
    """Return {kernel name: source} of the kernels that a loss over S windows and its gradient use."""
    sources = {}

    def function(*arrays):
        *arrays, scales, kept = arrays if dropout else (*arrays, None, None)

        def loss(alpha, m, h, x, *weights):
            inputs = ScanInputs(alpha, m, h, x, weights, scales, kept)
            outs, saved = scan.scan(options, inputs)
            again, _ = scan.scan(options, inputs, saved, differentiated=True)
            return sum((out.square().sum() for out in [*outs, *again]), mx.array(0.0))

        value, gradients = mx.value_and_grad(loss, argnums=tuple(range(8)))(*arrays)
        return [value, *gradients]

    n, block = options.rows(K), (B, K, D)
    shapes = [(D,), block, block, (S, *block), (D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]
    arrays = [mx.zeros(shape) for shape in shapes]
    if dropout:
        words = (S, B, options.heads, n, -(-2 * K // 32))
        arrays += [mx.zeros((S, 2, B, n, D)), mx.zeros(words, mx.uint32)]
    with _recorded(sources), tempfile.NamedTemporaryFile(suffix=".mlxfn") as file:
        kernels.choose(form)
        with pytest.raises(ValueError, match="serialize primitive CustomTransforms"):  # all is traced by then
            mx.export_function(file.name, function, *arrays)
    return sources


def options(history="output", heads=6, activation="relu", state_norm=False, qk_norm=False):
    return Options(heads, history, activation, state_norm, 2.25 if qk_norm else None, 1e-5)


@contextmanager
def _recorded(sources):
    """Record kernels' sources in ``sources`` as they are created."""
    make = mx.fast.metal_kernel

    def metal_kernel(name, **settings):
        kernel = make(name=name, **settings)

        def call(**arguments):
            made, printed = _printed(lambda: kernel(**arguments, verbose=True))
            sources[name] = printed.split("```\n", 1)[1].rsplit("\n```", 1)[0]
            return made

        return call

    _forget()
    mx.fast.metal_kernel = metal_kernel
    try:
        yield
    finally:
        mx.fast.metal_kernel = make
        kernels.choose(None)
        _forget()


def _forget():
    for cached in CACHED:
        cached.cache_clear()


def _printed(call):
    """Return what a call returns, and what it prints from C++."""
    sys.stdout.flush()
    before = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            made = call()
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(before, 1)
            os.close(before)
        file.seek(0)
        return made, file.read().decode()
