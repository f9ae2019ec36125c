"""The window of Eq. 6 and the clamp of α, each with a gradient of its own, and twins of them without.

MLX cannot export a function with a gradient of its own, nor can a graph be walked that holds one.
"""

from typing import NamedTuple, cast

import mlx.core as mx


class Gate(NamedTuple):
    """An α that the rows decide to which history is added: σ(z W + b), a number a head and row z."""

    weight: mx.array  # W (D, H)
    bias: mx.array  # b (H,)


Alpha = mx.array | Gate  # a scalar, a number a channel (D,), or a gate


def accumulate(alpha: Alpha, m: mx.array, z: mx.array) -> mx.array:
    """α m + z: history m added to rows z, both (…, D)."""
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
    """``alpha`` clamped to [0, 1]; outside, a gradient whose descent leads back in is let through."""
    return cast(mx.array, _clamp(alpha))


def exportable_clamp(alpha: mx.array) -> mx.array:
    """The same without a gradient outside [0, 1]."""
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
    """The window (α m + h, α m + x) of blocks (B, K, D): (B, 2K, D); but for a gate in one operation, one backward."""
    return exportable_window(alpha, m, h, x) if isinstance(alpha, Gate) else cast(mx.array, _window(alpha, m, h, x))


def exportable_window(alpha: Alpha, m: mx.array, h: mx.array, x: mx.array) -> mx.array:
    """The same in operations with gradients of their own."""
    return accumulate(alpha, mx.tile(m, (1, 2, 1)), mx.concatenate([h, x], axis=1))
