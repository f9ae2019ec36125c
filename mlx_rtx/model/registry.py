"""Model classes by the names that commands and run folders use."""

import functools

from mlx_rtx.model.config import ModelConfig, ModelKind
from mlx_rtx.model.recurrent import RecurrentTransformer
from mlx_rtx.model.regular import RegularTransformer
from mlx_rtx.support.trees import count

MODELS: dict[ModelKind, type[RecurrentTransformer] | type[RegularTransformer]] = {
    "recurrent": RecurrentTransformer,
    "regular": RegularTransformer,
}


@functools.cache
def parameter_count(config: ModelConfig, model: ModelKind = "recurrent") -> int:
    """Return the number of parameters of a model with this configuration."""
    return count(MODELS[model](config).parameters())
