"""Eq. 6 over a segment's windows with fused kernels and a custom gradient.

Letters: B batch, S windows, K block width, D width, n rows of a window that have outputs (2K with
``history="output"``, K with ``"hidden"``).

If a segment is run twice, forward and again for its gradient, only the outputs of the windows are saved. They determine
the carry into each window, so the backward pass need not rerun the sequential scan: it recomputes the activations of
all windows at once, and then propagates the gradient from window to window.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

from mlx_rtx.kernels import Tiles, form, narrow, source, wide
from mlx_rtx.kernels.options import Drops, Options, ScanGradient, ScanInputs
from mlx_rtx.kernels.wide import SavedActivations
from mlx_rtx.support.trees import each

import mlx.core as mx

# A long kernel launch freezes the display, and macOS may abort it. An Apple M4 GPU has 10 cores; each runs one
# threadgroup of a narrow kernel at a time. The rate is the slower of two estimates; it has not been measured.
LONGEST_LAUNCH = 0.05  # seconds
CORES, OPS_PER_CORE = 10, 25e9  # OPS_PER_CORE: multiply-adds per second


def seconds_a_window(B: int, n: int, K: int, D: int) -> float:
    """Estimate the seconds that a narrow kernel takes per window on an Apple M4."""
    return -(-B // CORES) * narrow.window_ops(n, K, D) / OPS_PER_CORE


def windows_at_once(B: int, n: int, K: int, D: int) -> int | None:
    """Return the maximum number of windows per launch of a narrow kernel on this backend, or None if unlimited."""
    return None if source.backend() == "cuda" else max(1, int(LONGEST_LAUNCH / seconds_a_window(B, n, K, D)))


def scan(
    options: Options, inputs: ScanInputs, saved: Sequence[mx.array] = (), differentiated: bool = False
) -> tuple[list[mx.array], tuple[mx.array, ...]]:
    """Apply τ to S windows in sequence, each with the carry of the previous one.

    Args:
        options: compile-time options of the kernels.
        inputs: carry, blocks, weights and dropout masks.
        saved: arrays that an earlier call with the same arguments returned to save; the forward pass is then skipped.
        differentiated: whether a gradient of this call will be taken.

    Returns:
        (S outputs (B, n, D); arrays to save for a backward pass).
    """
    (S, B, K, D), chosen = inputs.x.shape, form(inputs.x.shape[-1])
    if not chosen.narrow:
        keep_activations = differentiated and not saved
        made = _wide_scan(options, inputs.drops, keep_activations)(*_as_arrays(inputs), *saved)
        outs = list(made[:S])
        return outs, tuple(outs)
    run = _narrow_scan(options, chosen.tiles, inputs.drops)
    at_once = chosen.windows or windows_at_once(B, options.rows(K), K, D) or S
    pieces: list[mx.array] = []  # outputs of each launch (windows, B, n, D)
    for start in range(0, S, at_once):
        (out,) = run(*_as_arrays(inputs.slice(start, start + at_once)), *saved[len(pieces) : len(pieces) + 1])
        pieces.append(out)
        if start + at_once < S:
            m, h = _carries(options, inputs.m, inputs.h, out[-2:])
            inputs = inputs._replace(m=m[-1], h=h[-1])
    return [window for out in pieces for window in each(out)], tuple(pieces)


DifferentiableScan = Callable[..., list[mx.array]]  # takes the arrays of `ScanInputs`, then saved outputs, if any


def _as_arrays(inputs: ScanInputs) -> list[mx.array]:
    """Return the inputs as a flat list, without missing masks."""
    masks = [mask for mask in (inputs.dropout, inputs.kept) if mask is not None]
    return [*inputs[:4], *inputs.weights, *masks]


def _as_inputs(arrays: Sequence[mx.array], drops: Drops) -> tuple[ScanInputs, list[mx.array]]:
    """Split the arguments of a `DifferentiableScan` into inputs and saved outputs."""
    alpha, m, h, x, wqkv, wo, w1, w2, *rest = arrays
    dropout, kept = (rest.pop(0) if dropped else None for dropped in drops)
    return ScanInputs(alpha, m, h, x, (wqkv, wo, w1, w2), dropout, kept), rest


def _as_gradients(gradient: ScanGradient, arrays: Sequence[mx.array]) -> list[mx.array]:
    """Return the gradient as a flat list, with zeros for dropout masks and saved outputs."""
    needed = [*gradient[:4], *gradient.weights]
    return [*needed, *(mx.zeros_like(array) for array in arrays[len(needed) :])]


@cache
def _narrow_scan(options: Options, tiles: Tiles, drops: Drops) -> DifferentiableScan:
    """Return the scan of a narrow model, whose result is one array of outputs (S, B, n, D)."""

    def forward(*arrays):
        inputs, saved = _as_inputs(arrays, drops)
        return saved or [narrow.forward(options, tiles, inputs)]

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        inputs, _ = _as_inputs(primals, drops)
        (out,), (dout,) = outputs, cotangents
        activations = wide.activations(options, _with_carries(options, inputs, out))
        return _as_gradients(narrow.backward(options, tiles, inputs, out, dout, activations), primals)

    return cast(DifferentiableScan, run)


@cache
def _wide_scan(options: Options, drops: Drops, keep_activations: bool) -> DifferentiableScan:
    """Return the scan of a wide model: one output per window, then with ``keep_activations`` those of each window."""

    def forward(*arrays):
        inputs, saved = _as_inputs(arrays, drops)
        if saved:
            return saved
        outs, windows = wide.forward(options, inputs)
        return [*outs, *(array for window in windows for array in window)] if keep_activations else outs

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        inputs, _ = _as_inputs(primals, drops)
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
    """Replace m and h by those into each window, (S, B, K, D), computed from the windows' outputs (S, B, n, D)."""
    m, h = _carries(options, inputs.m, inputs.h, out[:-1])
    return inputs._replace(m=m, h=h)


def _carries(options: Options, m: mx.array, h: mx.array, out: mx.array) -> tuple[mx.array, mx.array]:
    """Return m and h before each window and after the last, (len(out) + 1, B, K, D) each.

    The first ones are those given; the others are computed from the outputs of the windows, ``out``.
    """
    K, state = m.shape[1], out
    if options.state_norm and len(out):  # MLX's rms_norm fails on empty arrays on CUDA
        state = mx.fast.rms_norm(state, None, options.epsilon)
    hs = mx.concatenate([h[None], state[:, :, -K:]])
    return mx.concatenate([m[None], hs[:-1] if options.history == "hidden" else state[:, :, :K]]), hs
