"""Embedding and readout: initialisation, and positions of segments."""

import math

from mlx_rtx.model.embedding import Embedding
from mlx_rtx.support.trees import flat

import mlx.core as mx
import pytest

from tiny import K, make_config, make_tokens


@pytest.mark.parametrize("positions", ["absolute", "block", "axial", "none"])
def test_a_piece_of_a_sequence_is_embedded_as_in_the_whole(positions):
    """At any start position, known or traced."""
    limit = 3 * K - 1
    embedding = Embedding(make_config(positions=positions, max_len=limit))
    tokens, weights = make_tokens(limit), embedding.parameters()
    whole = embedding(tokens, weights)
    for start in range(limit):
        for end in range(start + 1, limit + 1):
            for position in (start, mx.array(start)):
                assert mx.array_equal(embedding(tokens[:, start:end], weights, position), whole[:, start:end])


@pytest.mark.parametrize("positions", ["block", "axial", "none"])
def test_initial_tables_do_not_depend_on_positions(positions):
    """Tables are drawn in a fixed order from the seed."""
    tables = []
    for kind in ("absolute", positions):
        mx.random.seed(3)
        tables.append(Embedding(make_config(positions=kind, max_len=K)))
    assert mx.array_equal(tables[0].tokens, tables[1].tokens)
    assert positions == "none" or mx.array_equal(tables[0].positions, tables[1].positions)


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, {"tokens": (50, 64), "positions": (40, 64)}),
        ({"positions": "block"}, {"tokens": (50, 64), "positions": (16, 64)}),
        ({"positions": "axial"}, {"tokens": (50, 64), "positions": (16, 64), "blocks": (3, 64)}),  # ⌈40/16⌉ blocks
        ({"positions": "none"}, {"tokens": (50, 64)}),
        (
            {"embedding_std": 0.3, "tie_embeddings": False},
            {"tokens": (50, 64), "positions": (40, 64), "head": (64, 50)},
        ),
        ({"positions": "none", "tie_embeddings": False, "out_size": 30}, {"tokens": (50, 64), "head": (64, 30)}),
    ],
    ids=str,
)
def test_initial_standard_deviation(changes, shapes):
    """By default N(0, 0.02²), as for a separate readout matrix. Bounds are five standard errors."""
    mx.random.seed(0)
    tables = flat(Embedding(make_config(dim=64, vocab_size=50, block=16, **changes)).parameters())
    assert (tables.pop("norm.weight") == 1).all()
    assert {name: table.shape for name, table in tables.items()} == shapes
    for name, table in tables.items():
        std = 0.02 if name == "head" else changes.get("embedding_std", 0.02)
        assert abs(table.mean().item()) < 5 * std / math.sqrt(table.size), name
        assert table.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * table.size)), name
