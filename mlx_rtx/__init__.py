"""Recurrent transformers (B. N. Kausik, arXiv 2402.14746) for Apple MLX."""

from mlx_rtx import backend  # first: it must load before mlx.core
from mlx_rtx.checkpoint import load
from mlx_rtx.config import ModelConfig
from mlx_rtx.errors import UserError
from mlx_rtx.gradient import loss_and_grad
from mlx_rtx.recurrent import RecurrentTransformer
from mlx_rtx.regular import RegularTransformer

__all__ = [
    "ModelConfig",
    "RecurrentTransformer",
    "RegularTransformer",
    "UserError",
    "backend",
    "load",
    "loss_and_grad",
]
