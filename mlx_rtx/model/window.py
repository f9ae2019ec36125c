"""The window of Eq. 6 and the clamp of α, with custom gradients, and equivalent versions without.

The versions without custom gradients exist because MLX cannot export graphs that contain `mx.custom_function`, nor can
such graphs be traversed.
"""

from typing import NamedTuple, cast

import mlx.core as mx


class Gate(NamedTuple):
    """Parameters of a gated α: σ(z W + b), one value per head for each row z to which the history is added."""

    weight: mx.array  # W (D, H)
    bias: mx.array  # b (H,)


Alpha = mx.array | Gate  # a scalar, one value per channel (D,), or a gate


def accumulate(alpha: Alpha, m: mx.array, z: mx.array) -> mx.array:
    """Compute α m + z for history m and rows z, both (…, D)."""
    if isinstance(alpha, Gate):
        by_head = mx.sigmoid(z @ alpha.weight + alpha.bias)  # (…, H)
        alpha = mx.repeat(by_head, z.shape[-1] // by_head.shape[-1], axis=-1)
    return alpha * m + z


@mx.custom_function
def _clamp(alpha):
    return mx.clip(alpha, 0, 1)


@_clamp.vjp
def _clamp_vjp(alpha, cotangent, _):
    descends_outside = ((alpha < 0) & (cotangent > 0)) | ((alpha > 1) & (cotangent < 0))
    return mx.where(descends_outside, mx.zeros_like(cotangent), cotangent)


def clamp(alpha: mx.array) -> mx.array:
    """Clamp ``alpha`` to [0, 1]; outside, pass only those gradients whose descent step moves it back towards [0, 1]."""
    return cast(mx.array, _clamp(alpha))


def exportable_clamp(alpha: mx.array) -> mx.array:
    """Clamp ``alpha`` to [0, 1] without a custom gradient: the gradient outside [0, 1] is zero."""
    return mx.clip(alpha, 0, 1)


@mx.custom_function
def _window(alpha, m, h, x):
    B, K, D = x.shape
    first_half = mx.array([True, False])[:, None, None]
    rows = mx.where(first_half, h[:, None], x[:, None]) + (alpha * m)[:, None]  # (B, 2, K, D)
    return rows.reshape(B, 2 * K, D)


@_window.vjp
def _window_vjp(primals, cotangent, _):
    alpha, m, _, x = primals
    B, K, D = x.shape
    cotangent = cotangent.reshape(B, 2, K, D)
    h_grad, x_grad = cotangent[:, 0], cotangent[:, 1]
    both = h_grad + x_grad
    of_alpha = (m * both).sum(axis=(0, 1) if alpha.ndim else None)
    return of_alpha, alpha * both, h_grad, x_grad


def window(alpha: Alpha, m: mx.array, h: mx.array, x: mx.array) -> mx.array:
    """Return the window (α m + h, α m + x), (B, 2K, D), of blocks m, h, x (B, K, D).

    Except for a gate, it has a custom gradient, which takes fewer operations than the one that MLX derives.
    """
    return exportable_window(alpha, m, h, x) if isinstance(alpha, Gate) else cast(mx.array, _window(alpha, m, h, x))


def exportable_window(alpha: Alpha, m: mx.array, h: mx.array, x: mx.array) -> mx.array:
    """Return the same as `window`, without a custom gradient."""
    return accumulate(alpha, mx.tile(m, (1, 2, 1)), mx.concatenate([h, x], axis=1))
