"""Tiny models and tokens for all tests."""

import os

from mlx_rtx import ModelConfig, RecurrentTransformer, RegularTransformer

import mlx.core as mx
import pytest
from mlx.utils import tree_map

os.environ.setdefault("MLX_RTX_KERNELS", "0")  # on a GPU each tiny shape would be compiled; test_kernels.py has them
K = 4
LENGTHS = [1, K - 1, K, K + 1, 2 * K, 2 * K + 1, 3 * K - 5, 5 * K - 1, 6 * K]
HISTORIES = ["hidden", "output"]


def make_config(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 7, "max_len": 40, "dim": 8, "heads": 2, "block": K, **changes})


def make_model(kind=RecurrentTransformer, seed=0, **changes):
    """A model whose weights are large enough for every part of it to matter."""
    mx.random.seed(seed)
    model = kind(make_config(**changes))
    alphas = [mx.array(alpha) for alpha in model.alphas]
    model.update(tree_map(lambda w: w + 0.3 * mx.random.normal(w.shape), model.parameters()))
    for layer, alpha in zip(model.layers, alphas, strict=False):
        layer.alpha = alpha
    model.eval()
    return model


def make_tokens(length: int, batch: int = 2, seed: int = 1) -> mx.array:
    return mx.random.randint(0, 7, (batch, length), key=mx.random.key(seed))


@pytest.fixture(params=[RecurrentTransformer, RegularTransformer], ids=["recurrent", "regular"])
def kind(request):
    return request.param
