"""Recurrent transformers (B. N. Kausik, arXiv 2402.14746) for Apple MLX."""

from mlx_rtx.support import startup  # noqa: F401 (first: handles Ctrl-C during imports)

# isort: split

from mlx_rtx.support import backend  # must be imported before mlx.core

# isort: split

from mlx_rtx.generation.decoding import stream_generate
from mlx_rtx.generation.sampling import make_sampler
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.recurrent import RecurrentTransformer
from mlx_rtx.model.regular import RegularTransformer
from mlx_rtx.support.errors import UserError
from mlx_rtx.tasks.vocabulary import Characters
from mlx_rtx.training.checkpoint import load, load_vocabulary
from mlx_rtx.training.gradient import loss_and_grad

__all__ = [
    "Characters",
    "ModelConfig",
    "RecurrentTransformer",
    "RegularTransformer",
    "UserError",
    "backend",
    "load",
    "load_vocabulary",
    "loss_and_grad",
    "make_sampler",
    "stream_generate",
]
