"""Fused GPU kernels, written once for CUDA and Metal; wherever they are not used, plain MLX does the same.

They run on NVIDIA GPUs, where they were proven. On Metal nobody has run them yet: there they run only where the
environment variable ``MLX_RTX_KERNELS=1`` asks for them. ``MLX_RTX_KERNELS=0`` turns them off everywhere.
"""

import os

import mlx.core as mx


def available() -> bool:
    """Whether kernels are to be used on the device in use."""
    asked = os.environ.get("MLX_RTX_KERNELS", "")
    on_gpu = mx.default_device() == mx.gpu
    return on_gpu and (mx.cuda.is_available() if asked == "" else asked != "0")
