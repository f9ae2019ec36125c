"""What a contender of `peers` is asked, and what comes back: all that crosses from one process to the other."""

from dataclasses import dataclass
from typing import Literal

from mlx_rtx.model.config import ModelKind

Contender = Literal["mlx", "torch eager", "torch compile", "torch graphs"]


@dataclass(frozen=True)
class Request:
    """A contender, a model at a size, and how to time it."""

    contender: Contender
    model: ModelKind
    mode: Literal["forward", "training"]
    config: dict
    """Fields of a `mlx_rtx.ModelConfig`."""
    batch: int
    length: int
    targets: int
    segment: int | None
    """Blocks to a segment of MLX's gradient."""
    repeats: int
    tf32: bool
    gpu: bool
    """Whether MLX uses one; PyTorch then does too."""


@dataclass(frozen=True)
class ContenderTiming:
    """What a contender took."""

    seconds: float  # median
    fastest: float
    slowest: float
    first: float  # the first call, with all that is compiled or captured for it
    peak_gb: float | None
    memory: str  # what peak_gb is
    loss: float | None  # of the last call
    ran_on: str
