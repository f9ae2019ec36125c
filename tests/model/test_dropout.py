"""Dropout: it applies to embeddings and to both branches of a layer, and all masks are independent.

With α = 0 and two output matrices at zero a layer is the identity, so masks are visible in the outputs: that of the
embedding where outputs are zero, and that of one branch whose output matrix is not zero in what it adds.
"""

from mlx_rtx import RecurrentTransformer
from mlx_rtx.model import dropout, recurrent, regular
from mlx_rtx.model.segment import Segment
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from tiny import HISTORIES, K, make_model, make_tokens

RATE, B, D, LENGTH = 0.25, 16, 64, 2 * K  # rows of D are long enough that no two masks are equal by chance


def make_training(kind, history, **changes):
    model = make_model(kind, history=history, layers=2, dim=D, dropout=RATE, alpha=0.0, **changes)
    model.train()
    return model


def run(model, length, opened=None):
    """Run the first ``length`` tokens in training mode, with all branches zero except for one output matrix."""
    named = {
        name: mx.zeros_like(weight) if name.endswith("_out") and name != opened else weight
        for name, weight in flat(model.parameters()).items()
    }
    keys = model.dropout_keys(LENGTH, mx.random.key(5))[: model.masked_parts(length)]
    wanted = min(length, K) if isinstance(model, RecurrentTransformer) else length
    weights = model.fold_weights(tree_unflatten(list(named.items())))
    return model.run(weights, Segment(make_tokens(LENGTH, B)[:, :length], 0, wanted, False, keys))


def masks(model):
    """Return {name: what each draw keeps}: (B, K, D) for each block, layer, branch and use of τ, or of the sequence."""
    recurs, found = isinstance(model, RecurrentTransformer), {}
    for length in range(K, LENGTH + 1, K) if recurs else [LENGTH]:
        x = run(model, length).y
        found[length, "embedding"] = x != 0
        for name in flat(model.parameters()):
            if not name.endswith("_out"):
                continue
            out, before = run(model, length, name), x
            if recurs:
                before = out.carry[int(name.split(".")[1])].h
                found[length, name, "h"] = before != x
            found[length, name, "y"] = out.y != before
    return {name: np.array(mask) for name, mask in found.items()}


@pytest.mark.parametrize("history", HISTORIES)
def test_each_use_has_the_right_rate(kind, history):
    found = masks(make_training(kind, history))
    assert len(found) == (2 * (1 + 2 * 2 * 2) if kind is RecurrentTransformer else 1 + 2 * 2)
    for name, mask in found.items():
        assert abs(mask.mean() - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / mask.size), name


@pytest.mark.parametrize("history", HISTORIES)
def test_no_two_rows_have_the_same_mask(kind, history):
    """Not in different sequences, blocks, layers or branches, nor in the uses of τ for h and for y."""
    rows = [row.tobytes() for mask in masks(make_training(kind, history)).values() for row in mask.reshape(-1, D)]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("history", HISTORIES)
def test_kept_values_of_an_embedding_are_scaled_up(kind, history):
    model = make_training(kind, history)
    whole = model.embedding(make_tokens(LENGTH, B), model.parameters()["embedding"])
    for length in (K, LENGTH):
        y = run(model, length).y
        expected = mx.where(y != 0, whole[:, :length][:, -y.shape[1] :] / (1 - RATE), 0.0)
        assert mx.allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 8, 32, 36, 64])
def test_mask_bits(columns):
    drawn = mx.random.split(mx.random.key(1), 3), RATE, (2, 5, columns)
    kept = dropout.draw_kept(*drawn)
    bits = np.array(dropout.as_bits(kept))
    assert bits.shape == (3, 2, 5, -(-columns // 32))
    assert bits.dtype == np.uint32
    unpacked = np.unpackbits(bits.astype("<u4").view(np.uint8), axis=-1, bitorder="little")
    assert np.array_equal(unpacked[..., :columns], np.array(kept))
    assert not unpacked[..., columns:].any()
    assert mx.array_equal(dropout.draw_scales(*drawn) > 0, kept)


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
@pytest.mark.parametrize("history", HISTORIES)
def test_a_key_is_used_once(kind, history, attention_dropout, monkeypatch):
    """Draws of different shapes from the same key are correlated, and a key that is split must not be drawn from."""
    used = []

    def noting(real):
        def noted(keys, *rest):
            used.extend(map(tuple, keys.tolist()))
            return real(keys, *rest)

        return noted

    for module in (dropout, recurrent, regular):
        for name in ("draw_scales", "split_keys"):
            monkeypatch.setattr(module, name, noting(getattr(module, name)))
    make_training(kind, history, attention_dropout=attention_dropout)(make_tokens(LENGTH), key=mx.random.key(5))
    assert len(used) >= 1 + 1 + 2  # split, embedding, two layers
    assert len(set(used)) == len(used)
