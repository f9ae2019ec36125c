"""The two ends by themselves: what their tables start as."""

import math

from mlx_rtx.model.embedding import Embedding
from mlx_rtx.support.trees import flat

import mlx.core as mx
import pytest

from tiny import make_config


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, {"tokens": (50, 64), "positions": (40, 64)}),
        ({"positions": "block"}, {"tokens": (50, 64), "positions": (16, 64)}),
        ({"positions": "none"}, {"tokens": (50, 64)}),
        (
            {"embedding_std": 0.3, "tie_embeddings": False},
            {"tokens": (50, 64), "positions": (40, 64), "head": (64, 50)},
        ),
        ({"positions": "none", "tie_embeddings": False, "out_size": 30}, {"tokens": (50, 64), "head": (64, 30)}),
    ],
    ids=str,
)
def test_tables_start_with_the_deviation_that_is_set(changes, shapes):
    """By default N(0, 0.02), as a head of its own always does. Bounds are five standard errors."""
    mx.random.seed(0)
    tables = flat(Embedding(make_config(dim=64, vocab_size=50, block=16, **changes)).parameters())
    assert (tables.pop("norm.weight") == 1).all()
    assert {name: table.shape for name, table in tables.items()} == shapes
    for name, table in tables.items():
        std = 0.02 if name == "head" else changes.get("embedding_std", 0.02)
        assert abs(table.mean().item()) < 5 * std / math.sqrt(table.size), name
        assert table.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * table.size)), name
