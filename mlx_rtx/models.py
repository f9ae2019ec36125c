"""The kinds of model by name, as commands and run folders call them."""

from mlx_rtx.recurrent import RecurrentTransformer
from mlx_rtx.regular import RegularTransformer
from mlx_rtx.transformer import Transformer

MODELS: dict[str, type[RecurrentTransformer] | type[RegularTransformer]] = {
    "recurrent": RecurrentTransformer,
    "regular": RegularTransformer,
}

__all__ = ["MODELS", "Transformer"]
