"""Layer norm and RMS norm over the last axis, with correct gradients on all backends."""

from mlx_rtx.model.config import NORM_EPS

import mlx.core as mx


def layer_norm(x: mx.array, gain: mx.array | None = None) -> mx.array:
    """Normalise rows of ``x`` (…, D) to mean 0 and variance 1, and multiply them by ``gain`` (D,) if it is given."""
    if gradient_is_wrong(x.shape[-1]):
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred * mx.rsqrt(centred.square().mean(axis=-1, keepdims=True) + NORM_EPS)
        return normed if gain is None else normed * gain
    return mx.fast.layer_norm(x, gain, None, NORM_EPS)


def gradient_is_wrong(D: int) -> bool:
    """Return whether `mx.fast.layer_norm` has a wrong gradient for rows of D elements on the default device.

    In MLX's CUDA kernel (``layer_norm_vjp`` in layer_norm.cu, as of 0.32.4) the loop over the last D mod 4 elements
    reads gains and cotangents at wrong indices. On an NVIDIA H200 the gradient of ``x`` had errors of 0.3 of its
    maximum at D 6 and 0.04 at D 130, and D 258 ended with an illegal memory access. The gradients of the gain and of
    `mx.fast.rms_norm` are correct.
    """
    return D % 4 != 0 and mx.cuda.is_available() and mx.default_device() == mx.gpu


def rms_norm(x: mx.array) -> mx.array:
    """Divide rows of ``x`` (…, D) by their root mean square."""
    return mx.fast.rms_norm(x, None, NORM_EPS)
