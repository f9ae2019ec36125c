"""Fused GPU kernels with one source for CUDA and Metal, an alternative to plain MLX operations.

The environment variable ``MLX_RTX_KERNELS`` controls their use: ``1`` on every GPU, ``0`` never, ``auto`` if a check on
this machine found them correct and faster (`mlx_rtx.kernel_check`). The default is ``1`` on NVIDIA GPUs, where they
have been tested, and ``auto`` on Metal.
"""

import os
from typing import Literal, NamedTuple, get_args

from mlx_rtx.support.errors import require

import mlx.core as mx

VARIABLE = "MLX_RTX_KERNELS"
NARROW = 128  # largest D for which the narrow form is used unless a check has chosen a form


# How a narrow kernel computes matrix products. large tiles: many results per thread, for GPUs with enough registers;
# small tiles: fewer; matrices: each warp multiplies 8 x 8 matrices, on Metal only and for D a multiple of 8.
Tiles = Literal["large tiles", "small tiles", "matrices"]


class Form(NamedTuple):
    """One of the ways in which kernels run a scan."""

    narrow: bool  # one kernel per direction, see `mlx_rtx.kernels.narrow`; else `mlx_rtx.kernels.wide`
    tiles: Tiles = "large tiles"  # how a narrow kernel computes matrix products
    windows: int | None = None  # maximum number of windows per launch of a narrow kernel; None: backend's default

    def __str__(self) -> str:
        return f"narrow with {self.tiles}" if self.narrow else "wide"


FORMS = (*(Form(True, tiles) for tiles in get_args(Tiles)), Form(narrow=False))
_chosen: Form | None = None


def mode() -> str:
    """Return the setting of ``MLX_RTX_KERNELS``, or its default: "0", "1" or "auto".

    Raises:
        UserError: if the environment variable has another value.
    """
    value = os.environ.get(VARIABLE, "") or ("1" if mx.cuda.is_available() else "auto")
    require(value in ("0", "1", "auto"), f"{VARIABLE}={value}: must be 0, 1 or auto")
    return value


def available() -> bool:
    """Return whether kernels are used on the default device."""
    when = mode()
    return mx.default_device() == mx.gpu and (when == "1" or (when == "auto" and _chosen is not None))


def choose(form: Form | None) -> None:
    """Set the form that `form` and `available` report from now on; None removes the choice."""
    global _chosen
    _chosen = form


def form(width: int) -> Form:
    """Return the form for a model of width D: the chosen one, or the default for this width."""
    return _chosen or Form(narrow=width <= NARROW)
