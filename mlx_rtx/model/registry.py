"""The kinds of model by name, as commands and run folders call them."""

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.recurrent import RecurrentTransformer
from mlx_rtx.model.regular import RegularTransformer

MODELS: dict[str, type[RecurrentTransformer] | type[RegularTransformer]] = {
    "recurrent": RecurrentTransformer,
    "regular": RegularTransformer,
}

__all__ = ["MODELS", "Transformer"]
