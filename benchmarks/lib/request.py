"""The request to a contender of `peers` and its reply, which are passed between processes.

This module must not import MLX or `mlx_rtx`, because a process of PyTorch uses it.
"""

from dataclasses import dataclass
from typing import Literal

Contender = Literal["mlx", "torch eager", "torch compile", "torch graphs"]


@dataclass(frozen=True)
class Request:
    """A contender, a model at a size, and how to time it."""

    contender: Contender
    model: Literal["recurrent", "regular"]
    mode: Literal["forward", "training"]
    config: dict
    """Fields of a `mlx_rtx.ModelConfig`."""
    batch: int
    length: int
    targets: int
    segment: int | None
    """Blocks per segment of MLX's gradient."""
    repeats: int
    tf32: bool
    gpu: bool
    """Whether MLX uses a GPU; PyTorch must then use one too."""


@dataclass(frozen=True)
class ContenderTiming:
    """Times and memory of a contender."""

    seconds: float  # median
    fastest: float
    slowest: float
    first: float  # the first call, including compilation or capture
    peak_gb: float | None
    memory: str  # what peak_gb is
    loss: float | None  # loss of the last call
    ran_on: str
