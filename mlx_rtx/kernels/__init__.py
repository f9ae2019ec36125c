"""Fused GPU kernels, written once for CUDA and Metal; wherever they are not used, plain MLX does the same.

The environment variable ``MLX_RTX_KERNELS`` says when they run: ``1`` wherever there is a GPU, ``0`` never, ``auto``
where a check on this very machine found them right and faster (`mlx_rtx.kernel_check`). Not set it means 1 on NVIDIA
GPUs, where they were proven, and auto on Metal.
"""

import os
from typing import Literal, NamedTuple, get_args

from mlx_rtx.support.errors import require

import mlx.core as mx

VARIABLE = "MLX_RTX_KERNELS"
NARROW = 128  # up to this D one threadgroup has a whole window in hand, where no check says what is faster


# A thread's part of a product is as large as many registers bear, or small; or a warp multiplies matrices: on Metal,
# where widths are multiples of 8.
Tiles = Literal["large tiles", "small tiles", "matrices"]


class Form(NamedTuple):
    """One of the ways in which kernels run a scan."""

    narrow: bool  # one kernel a direction, see `mlx_rtx.kernels.narrow`; else `mlx_rtx.kernels.wide`
    tiles: Tiles = "large tiles"  # by which a narrow kernel multiplies
    windows: int | None = None  # of a narrow kernel's launch at most; None for what the backend can bear

    def __str__(self) -> str:
        return f"narrow by {self.tiles}" if self.narrow else "wide"


FORMS = (*(Form(True, tiles) for tiles in get_args(Tiles)), Form(narrow=False))
_chosen: Form | None = None


def asked() -> str:
    """What is asked for: 0, 1 or auto.

    Raises:
        UserError: the environment variable holds something else.
    """
    value = os.environ.get(VARIABLE, "") or ("1" if mx.cuda.is_available() else "auto")
    require(value in ("0", "1", "auto"), f"{VARIABLE}={value}: must be 0, 1 or auto")
    return value


def available() -> bool:
    """Whether kernels are to be used on the device in use."""
    when = asked()
    return mx.default_device() == mx.gpu and (when == "1" or (when == "auto" and _chosen is not None))


def choose(form: Form | None) -> None:
    """Let models that are made from now on run by this form; with None as if no check had been."""
    global _chosen
    _chosen = form


def form(width: int) -> Form:
    """The form for a model of that width D: the chosen one, else by width."""
    return _chosen or Form(narrow=width <= NARROW)
