"""The segmented gradient equals the plain gradient, also with dropout and truncation, in bounded memory."""

import itertools

from mlx_rtx import UserError, loss_and_grad
from mlx_rtx.model.segment import Segment
from mlx_rtx.training.gradient import carried_loss_and_grad

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from tiny import HISTORIES, K, make_model, make_tokens


def plain(model, tokens, targets, key):
    """Return loss and gradient of the whole unrolled sequence, computed by MLX alone."""

    def loss(model):
        logits = model(tokens, last=targets.shape[1], key=key)
        return nn.losses.cross_entropy(logits, targets, reduction="mean")

    return nn.value_and_grad(model, loss)(model)


def difference(first, second):
    pairs = zip(tree_flatten(first), tree_flatten(second), strict=True)
    return max(float(mx.abs(a - b).max()) / max(1.0, float(mx.abs(b).max())) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"layers": 2},
        {"state_norm": True},
        {"dropout": 0.4},
        {"dropout": 0.4, "layers": 2},
        {"alpha_kind": "channel", "qk_norm": True},
        {"alpha_kind": "gated"},
        {"positions": "axial"},
    ],
    ids=str,
)
@pytest.mark.parametrize("history", HISTORIES)
def test_segmented_equals_plain(history, variant, kind):
    model, tokens, key = make_model(kind, history=history, **variant), make_tokens(6 * K - 1), mx.random.key(5)
    model.train()
    for n in (1, K + 1, 6 * K - 1):  # the last token, the last blocks, every token
        targets = make_tokens(n, seed=2)
        expected_loss, expected = plain(model, tokens, targets, key)
        for segment in (None, 1, 2, 3, 100):
            loss, gradients = loss_and_grad(model, tokens, targets, segment, key=key)
            assert abs(loss - expected_loss).item() < 1e-5, (n, segment)
            assert difference(gradients, expected) < 1e-5, (n, segment)


@pytest.mark.parametrize("positions", ["absolute", "axial"])
@pytest.mark.parametrize("history", HISTORIES)
def test_every_parameter_receives_gradient(history, positions, kind):
    tokens = make_tokens(6 * K)
    model = make_model(kind, history=history, layers=2, tie_embeddings=False, positions=positions)
    _, gradients = loss_and_grad(model, tokens, tokens, 2)
    assert [name for name, _ in tree_flatten(gradients)] == [name for name, _ in tree_flatten(model.parameters())]
    for name, gradient in tree_flatten(gradients):
        assert float(mx.abs(gradient).max()) > 1e-7, name


def test_the_alpha_gradient_of_each_layer_covers_all_segments():
    model, tokens = make_model(), make_tokens(6 * K)
    _, exact = loss_and_grad(model, tokens, tokens[:, -1:], 1)
    _, cut = loss_and_grad(model, tokens, tokens[:, -1:], 1, detach=1)
    assert abs(exact["layers"][0]["alpha"] - cut["layers"][0]["alpha"]).item() > 1e-6


@pytest.mark.parametrize("detach", [1, 2])
def test_detach_equals_a_stopped_carry(detach):
    """Stopping the gradient every ``detach`` segments equals running pieces of the sequence with a constant carry."""
    model, tokens = make_model(), make_tokens(5 * K)
    targets = make_tokens(5 * K, seed=2)
    _, gradients = loss_and_grad(model, tokens, targets, 1, detach=detach)
    edges = [0, *range(5 % detach, 5, detach), 5] if 5 % detach else [*range(0, 6, detach)]

    def loss(model):
        total, carry, weights = 0.0, None, model.fold_weights()
        for start, end in itertools.pairwise(edges):
            piece = slice(start * K, end * K)
            segment = Segment(tokens[:, piece], start * K, (end - start) * K, end == 5)
            y, carry, _ = model.run(weights, segment, carry)
            carry = tree_map(mx.stop_gradient, carry) if end < 5 else None
            logits = model.embedding.readout(y, weights.embedding)
            total += nn.losses.cross_entropy(logits, targets[:, piece], reduction="sum")
        return total / targets.size

    assert difference(gradients, nn.value_and_grad(model, loss)(model)[1]) < 1e-5


def test_memory_is_that_of_a_segment():
    model, tokens = make_model(positions="block", dim=32), make_tokens(128 * K, 16)
    peaks = {}
    for segment in (None, 4):
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(loss_and_grad(model, tokens, tokens[:, -1:], segment))
        peaks[segment] = mx.get_peak_memory()
    assert peaks[4] < peaks[None] / 8


def test_dropout_draws_new_masks_and_only_in_training():
    model, tokens = make_model(dropout=0.5), make_tokens(3 * K)
    assert mx.array_equal(model(tokens), model(tokens))
    model.train()
    assert not mx.array_equal(model(tokens), model(tokens))
    key = mx.random.key(1)
    assert mx.array_equal(model(tokens, key=key), model(tokens, key=key))


def test_dropout_keeps_the_mean():
    """The mean over many masks of embeddings with dropout equals the embeddings."""
    from mlx_rtx.model.dropout import draw_scales

    factors = np.array(draw_scales(mx.random.split(mx.random.key(0), 3), 0.25, (200, 200)))
    assert set(np.unique(factors)) == {0.0, np.float32(1 / 0.75)}
    assert np.abs(factors.mean(axis=(1, 2)) - 1).max() < 0.02
    assert not np.array_equal(factors[0], factors[1])


def test_the_model_is_not_changed():
    model = make_model()
    before = dict(tree_flatten(model.parameters()))
    loss_and_grad(model, make_tokens(9), make_tokens(9), 1)
    for name, array in tree_flatten(model.parameters()):
        assert array is before[name]


@pytest.mark.parametrize("wrong", [{"segment": 0}, {"detach": 0}])
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=0"):
        loss_and_grad(make_model(), make_tokens(9), make_tokens(9), **wrong)


@pytest.mark.parametrize("segment", [None, 1, 2])
@pytest.mark.parametrize("history", HISTORIES)
def test_a_sequence_in_two_parts_continues_from_its_carry(history, segment):
    """Losses and carry equal those of the whole sequence; no gradient flows between the parts."""
    model = make_model(history=history, layers=2, positions="block")
    tokens, targets = make_tokens(6 * K), make_tokens(6 * K, seed=2)
    carry, losses = None, []
    for part in (slice(0, 4 * K), slice(4 * K, 6 * K)):
        before, size = carry, part.stop - part.start
        loss, gradients, carry = carried_loss_and_grad(
            model, tokens[:, part], targets[:, part], before, segment=segment, close=False
        )
        losses.append(loss.item() * size)
        loss_of_part = _loss_from(model, tokens[:, part], targets[:, part], before)
        expected = dict(tree_flatten(nn.value_and_grad(model, loss_of_part)(model)[1]))
        for name, gradient in tree_flatten(gradients):
            assert mx.allclose(gradient, expected[name], atol=1e-5), name
    whole = nn.losses.cross_entropy(model(tokens, close=False), targets, reduction="mean").item()
    assert sum(losses) / (6 * K) == pytest.approx(whole, rel=1e-5)
    expected_carry = model.run(model.fold_weights(), Segment(tokens)).carry
    for (name, found), (_, expected) in zip(tree_flatten(carry), tree_flatten(expected_carry), strict=True):
        assert mx.allclose(found, expected, atol=1e-5), name


def _loss_from(model, tokens, targets, carry):
    def loss(model):
        weights = model.fold_weights()
        y = model.run(weights, Segment(tokens, 0, tokens.shape[1]), carry).y
        return nn.losses.cross_entropy(model.embedding.readout(y, weights.embedding), targets, reduction="mean")

    return loss
