"""Eq. 6 over a piece's windows by fused kernels, with a gradient of its own.

Letters: B batch, S windows, K block width, D width, n rows of a window that have outputs (2K with
``history="output"``, K with ``"hidden"``).

Of a piece that is run twice only the outputs of the windows are kept. As they say what carry each window took, the
backward pass has no chain to run again: it computes what lies within all windows at once, and then goes from window
to window.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import cast

from mlx_rtx.kernels import narrow, wide
from mlx_rtx.kernels.options import Options
from mlx_rtx.model.layer import EPS, Weights

import mlx.core as mx

NARROW = 128  # up to this D one threadgroup has a whole window in hand

_recorded: list[list] = []  # outputs of scans, scan by scan, for each one that wants them
_known: list[Iterator] = []


@contextlib.contextmanager
def recording() -> Iterator[list]:
    """Note the outputs of all scans, in a list that grows meanwhile."""
    _recorded.append([])
    try:
        yield _recorded[-1]
    finally:
        _recorded.pop()


@contextlib.contextmanager
def knowing(outputs: list) -> Iterator[None]:
    """Take the outputs of the next scans from what an earlier run noted, as far as it goes; a gradient will follow."""
    _known.append(iter(outputs))
    try:
        yield
    finally:
        _known.pop()


def scan(
    options: Options,
    alpha: mx.array,
    m: mx.array,
    h: mx.array,
    x: mx.array,
    weights: Weights,
    keep: mx.array | None = None,
) -> list[mx.array]:
    """τ of S windows, each of which takes what the one before leaves.

    Args:
        m, h: the carry into the first window, each (B, K, D).
        x: the blocks that the windows take (S, B, K, D).
        weights: folded.
        keep: dropout factors (S, 2, B, n, D).

    Returns:
        Outputs, (S, B, n, D) in one array or (B, n, D) in one a window.
    """
    products = weights.qkv, weights.attention_out, weights.mlp_in, weights.mlp_out
    known: list[mx.array] = next(_known[-1], []) if _known else []
    factors = [] if keep is None else [keep]
    arrays = 1 if is_narrow(x.shape[-1]) else x.shape[0]  # of outputs
    save = bool(_known) and not known and not is_narrow(x.shape[-1])
    made = _function(options, keep is not None, save)(alpha, m, h, x, *products, *factors, *known)
    outs = list(made[:arrays])
    for noted in _recorded:
        noted.append(outs)
    return outs


def is_narrow(width: int) -> bool:
    """Whether a model of that width D takes the narrow form."""
    return width <= NARROW


@cache
def _function(options: Options, dropout: bool, save: bool) -> Callable[..., list[mx.array]]:
    """The scan as a differentiable function of alpha, m, h, x, four weights, factors if any, and outputs if known.

    To ``save`` is to give what lies within the windows beside the outputs.
    """
    count = 5 if dropout else 4  # weights and factors

    def forward(alpha, m, h, x, *rest):
        if known := rest[count:]:
            return list(known)
        kernels = narrow if is_narrow(x.shape[-1]) else wide
        outs, windows = kernels.forward(options, alpha, m, h, x, rest[:4], rest[4] if dropout else None)
        return [*outs, *(array for window in windows for array in window)] if save else outs

    run = mx.custom_function(forward)

    @run.vjp
    def run_vjp(primals, cotangents, outputs):
        alpha, m, h, x, *rest = primals
        weights, keep, S = rest[:4], rest[4] if dropout else None, x.shape[0]
        if is_narrow(x.shape[-1]):
            within = wide.within(options, alpha, *_carries(options, m, h, outputs), x, weights, keep)
            back = narrow.backward(options, alpha, m, h, x, weights, keep, outputs, cotangents, within)
        else:
            outs, saved = outputs[:S], outputs[S:]
            ms, hs = _carries(options, m, h, outs)
            if save:
                size = len(saved) // S
                windows = [wide.Within(*saved[i : i + size]) for i in range(0, len(saved), size)]
            else:
                windows = wide.within(options, alpha, ms, hs, x, weights, keep).split(S)
            back = wide.backward(options, alpha, ms, h, x, weights, keep, outs, cotangents[:S], windows)
        *gradient, of_weights = back
        unneeded = [mx.zeros_like(array) for array in rest[4:]]
        return *gradient, *of_weights, *unneeded

    return cast(Callable[..., list[mx.array]], run)


def _carries(options: Options, m: mx.array, h: mx.array, outs: list[mx.array]) -> tuple[mx.array, mx.array]:
    """The m and the h into each window, (S, B, K, D) each."""
    out, K = outs[0] if outs[0].ndim == 4 else mx.stack(outs), m.shape[1]
    state = mx.fast.rms_norm(out[:-1], None, EPS) if options.state_norm else out[:-1]
    hs = mx.concatenate([h[None], state[:, :, -K:]])
    return mx.concatenate([m[None], hs[:-1] if options.history == "hidden" else state[:, :, :K]]), hs
