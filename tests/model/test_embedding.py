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
        ({"positions": "none", "tie_embeddings": False, "out_size": 30}, {"tokens": (50, 64), "head": (64, 30)}),
    ],
    ids=str,
)
def test_tables_start_normal_with_a_deviation_of_two_hundredths(changes, shapes):
    """Bounds are five standard errors."""
    mx.random.seed(0)
    tables = flat(Embedding(make_config(dim=64, vocab_size=50, block=16, **changes)).parameters())
    assert (tables.pop("norm.weight") == 1).all()
    assert {name: table.shape for name, table in tables.items()} == shapes
    for name, table in tables.items():
        assert abs(table.mean().item()) < 5 * 0.02 / math.sqrt(table.size), name
        assert table.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * table.size)), name
