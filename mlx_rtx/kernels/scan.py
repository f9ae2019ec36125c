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
from mlx_rtx.kernels.options import Options, ScanGradient, ScanInputs
from mlx_rtx.kernels.wide import SavedActivations
from mlx_rtx.support.trees import each

import mlx.core as mx

NARROW = 128  # up to this D one threadgroup has a whole window in hand


def is_narrow(width: int) -> bool:
    """Whether a model of that width D takes the narrow form."""
    return width <= NARROW


def scan(
    options: Options, inputs: ScanInputs, saved: Sequence[mx.array] = (), differentiated: bool = False
) -> tuple[list[mx.array], tuple[mx.array, ...]]:
    """τ of S windows, each of which takes what the one before leaves.

    Args:
        options: what the kernels are compiled for.
        inputs: carry, blocks, weights and dropout scales.
        saved: what an earlier call with the same arguments saved: nothing is then run.
        differentiated: a gradient of this call will be taken.

    Returns:
        (S outputs (B, n, D); what to save for a backward pass).
    """
    has_dropout = inputs.dropout is not None
    arrays = [*inputs[:4], *inputs.weights, *([] if inputs.dropout is None else [inputs.dropout])]
    if is_narrow(inputs.x.shape[-1]):  # all outputs in one array (S, B, n, D)
        (out,) = _narrow_scan(options, has_dropout)(*arrays, *saved)
        return each(out), (out,)
    keep_activations = differentiated and not saved
    made = _wide_scan(options, has_dropout, keep_activations)(*arrays, *saved)
    outs = list(made[: len(inputs.x)])
    return outs, tuple(outs)


DifferentiableScan = Callable[..., list[mx.array]]  # of `ScanInputs` one by one, then saved outputs if there are any


def _as_inputs(arrays: Sequence[mx.array], has_dropout: bool) -> tuple[ScanInputs, list[mx.array]]:
    """The arguments of a `DifferentiableScan`: inputs and saved outputs."""
    alpha, m, h, x, wqkv, wo, w1, w2, *rest = arrays
    dropout = rest.pop(0) if has_dropout else None
    return ScanInputs(alpha, m, h, x, (wqkv, wo, w1, w2), dropout), rest


def _as_gradients(gradient: ScanGradient, arrays: Sequence[mx.array]) -> list[mx.array]:
    """A gradient one by one; nothing passes to dropout scales and saved outputs."""
    needed = [*gradient[:4], *gradient.weights]
    return [*needed, *(mx.zeros_like(array) for array in arrays[len(needed) :])]


@cache
def _narrow_scan(options: Options, has_dropout: bool) -> DifferentiableScan:
    """The scan of a narrow model: the outputs in one array."""

    def forward(*arrays):
        inputs, saved = _as_inputs(arrays, has_dropout)
        return saved or [narrow.forward(options, inputs)]

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        inputs, _ = _as_inputs(primals, has_dropout)
        (out,), (dout,) = outputs, cotangents
        activations = wide.activations(options, _with_carries(options, inputs, out))
        return _as_gradients(narrow.backward(options, inputs, out, dout, activations), primals)

    return cast(DifferentiableScan, run)


@cache
def _wide_scan(options: Options, has_dropout: bool, keep_activations: bool) -> DifferentiableScan:
    """The scan of a wide model: an output a window, and then, if they are kept, the activations of each."""

    def forward(*arrays):
        inputs, saved = _as_inputs(arrays, has_dropout)
        if saved:
            return saved
        outs, windows = wide.forward(options, inputs)
        return [*outs, *(array for window in windows for array in window)] if keep_activations else outs

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        inputs, _ = _as_inputs(primals, has_dropout)
        S = len(inputs.x)
        outs, kept = outputs[:S], outputs[S:]
        carried = _with_carries(options, inputs, mx.stack(outs))
        if keep_activations:
            size = len(kept) // S
            windows = [SavedActivations(*kept[i : i + size]) for i in range(0, len(kept), size)]
        else:
            windows = wide.activations(options, carried).split(S)
        gradient = wide.backward(options, inputs._replace(m=carried.m), outs, cotangents[:S], windows)
        return _as_gradients(gradient, primals)

    return cast(DifferentiableScan, run)


def _with_carries(options: Options, inputs: ScanInputs, out: mx.array) -> ScanInputs:
    """With the m and the h into each window, (S, B, K, D) each, from the outputs of all windows (S, B, n, D)."""
    _, m, h, *_ = inputs
    K, state = m.shape[1], out[:-1]
    if options.state_norm and len(out) > 1:  # CUDA cannot normalise nothing
        state = mx.fast.rms_norm(state, None, options.epsilon)
    hs = mx.concatenate([h[None], state[:, :, -K:]])
    ms = mx.concatenate([m[None], hs[:-1] if options.history == "hidden" else state[:, :, :K]])
    return inputs._replace(m=ms, h=hs)
