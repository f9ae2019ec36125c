"""Eq. 6 over a segment's windows by fused kernels, with a gradient of its own.

Letters: B batch, S windows, K block width, D width, n rows of a window that have outputs (2K with
``history="output"``, K with ``"hidden"``).

Of a segment that is run twice only the outputs of the windows are saved. As they say what carry each window took, the
backward pass has no chain to run again: it computes what lies within all windows at once, and then goes from window
to window.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

from mlx_rtx.kernels import narrow, wide
from mlx_rtx.kernels.options import Options, Products
from mlx_rtx.kernels.wide import SavedActivations
from mlx_rtx.support.trees import each

import mlx.core as mx

NARROW = 128  # up to this D one threadgroup has a whole window in hand


def is_narrow(width: int) -> bool:
    """Whether a model of that width D takes the narrow form."""
    return width <= NARROW


def scan(
    options: Options,
    alpha: mx.array,
    m: mx.array,
    h: mx.array,
    x: mx.array,
    weights: Products,
    dropout: mx.array | None = None,
    saved: Sequence[mx.array] = (),
    differentiated: bool = False,
) -> tuple[list[mx.array], tuple[mx.array, ...]]:
    """τ of S windows, each of which takes what the one before leaves.

    Args:
        options: what the kernels are compiled for.
        alpha: scalar.
        m, h: the carry into the first window, each (B, K, D).
        x: the blocks that the windows take (S, B, K, D).
        weights: folded, in float32.
        dropout: scales (S, 2, B, n, D).
        saved: what an earlier call with the same arguments saved: nothing is then run.
        differentiated: a gradient of this call will be taken.

    Returns:
        (S outputs (B, n, D); what to save for a backward pass).
    """
    scales = [] if dropout is None else [dropout]
    if is_narrow(x.shape[-1]):  # all outputs in one array (S, B, n, D)
        (out,) = _narrow_scan(options, dropout is not None)(alpha, m, h, x, *weights, *scales, *saved)
        return each(out), (out,)
    keep_activations = differentiated and not saved
    made = _wide_scan(options, dropout is not None, keep_activations)(alpha, m, h, x, *weights, *scales, *saved)
    outs = list(made[: x.shape[0]])
    return outs, tuple(outs)


DifferentiableScan = Callable[
    ..., list[mx.array]
]  # of alpha, m, h, x, four weights, scales if any, saved outputs if any


@cache
def _narrow_scan(options: Options, has_dropout: bool) -> DifferentiableScan:
    """The scan of a narrow model: the outputs in one array."""
    count = 5 if has_dropout else 4  # weights and scales

    def forward(alpha, m, h, x, *rest):
        if saved := rest[count:]:
            return list(saved)
        return [narrow.forward(options, alpha, m, h, x, rest[:4], rest[4] if has_dropout else None)]

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        alpha, m, h, x, *rest = primals
        products, dropout, (out,), (dout,) = rest[:4], rest[4] if has_dropout else None, outputs, cotangents
        activations = wide.activations(options, alpha, *_carries(options, m, h, out), x, products, dropout)
        gradient = narrow.backward(options, alpha, m, h, x, products, dropout, out, dout, activations)
        return *gradient[:4], *gradient.weights, *map(mx.zeros_like, rest[4:])

    return cast(DifferentiableScan, run)


@cache
def _wide_scan(options: Options, has_dropout: bool, keep_activations: bool) -> DifferentiableScan:
    """The scan of a wide model: an output a window, and then, if they are kept, the activations of each."""
    count = 5 if has_dropout else 4  # weights and scales

    def forward(alpha, m, h, x, *rest):
        if saved := rest[count:]:
            return list(saved)
        outs, windows = wide.forward(options, alpha, m, h, x, rest[:4], rest[4] if has_dropout else None)
        return [*outs, *(array for window in windows for array in window)] if keep_activations else outs

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        alpha, m, h, x, *rest = primals
        products, dropout, S = rest[:4], rest[4] if has_dropout else None, x.shape[0]
        outs, kept = outputs[:S], outputs[S:]
        ms, hs = _carries(options, m, h, mx.stack(outs))
        if keep_activations:
            size = len(kept) // S
            windows = [SavedActivations(*kept[i : i + size]) for i in range(0, len(kept), size)]
        else:
            windows = wide.activations(options, alpha, ms, hs, x, products, dropout).split(S)
        gradient = wide.backward(options, alpha, ms, h, x, products, dropout, outs, cotangents[:S], windows)
        return *gradient[:4], *gradient.weights, *map(mx.zeros_like, rest[4:])

    return cast(DifferentiableScan, run)


def _carries(options: Options, m: mx.array, h: mx.array, out: mx.array) -> tuple[mx.array, mx.array]:
    """The m and the h into each window, (S, B, K, D) each, from the outputs of all windows (S, B, n, D)."""
    K, state = m.shape[1], out[:-1]
    if options.state_norm and len(out) > 1:  # CUDA cannot normalise nothing
        state = mx.fast.rms_norm(state, None, options.epsilon)
    hs = mx.concatenate([h[None], state[:, :, -K:]])
    return mx.concatenate([m[None], hs[:-1] if options.history == "hidden" else state[:, :, :K]]), hs
