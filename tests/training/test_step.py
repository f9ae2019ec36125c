"""Training step: it follows the clipped gradient of its batch with the given learning rate."""

from mlx_rtx import loss_and_grad
from mlx_rtx.support.trees import flat
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import pytest

from tiny import K, make_model, make_tokens

TOKENS, TARGETS, KEY = make_tokens(4 * K), make_tokens(3, seed=2), mx.random.key(7)


def joined(tree):
    return mx.concatenate([array.reshape(-1) for array in flat(tree).values()])


def take(lr=1e-3, decay=0.0, clip=0.0, detach=None, **settings):
    """Take one step; return its loss and the change of each weight."""
    model = make_model(dropout=0.4)
    before = joined(model.parameters())
    step = TrainingStep(model, OptimizerConfig(lr=1.0, clip=clip, weight_decay=decay), segment=1, detach=detach)
    loss = step(TOKENS, TARGETS, lr, **{"key": KEY, **settings}).loss
    return loss, joined(model.parameters()) - before


@pytest.mark.parametrize("settings", [{}, {"detach": 1}, {"close": False}, {"key": mx.random.key(8)}], ids=str)
def test_the_first_step_follows_the_negative_gradient(settings):
    """Adam's first step is g / (|g| + 1e-8) times the rate, where g is the gradient with dropout."""
    model = make_model(dropout=0.4)
    model.train()
    loss, gradients = loss_and_grad(model, TOKENS, TARGETS, 1, **{"key": KEY, **settings})
    g = joined(gradients)
    found, moved = take(**settings)
    assert mx.allclose(found, loss, rtol=1e-6)
    assert mx.allclose(moved, -1e-3 * g / (mx.abs(g) + 1e-8), atol=1e-5)


def test_each_setting_changes_the_step():
    """Otherwise the test above would not notice a setting that is ignored."""
    moves = [take(**settings)[1] for settings in ({}, {"detach": 1}, {"close": False}, {"key": mx.random.key(8)})]
    for other in moves[1:]:
        assert mx.abs(moves[0] - other).max() > 1e-4


def test_gradients_are_clipped():
    """Clipping far below Adam's epsilon gives no change; a limit above the norm has no effect."""
    _, unclipped = take()
    assert mx.array_equal(take(clip=1e9)[1], unclipped)
    assert mx.abs(unclipped).max() > 9e-4
    assert mx.abs(take(clip=1e-12)[1]).max() < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_learning_rate_scales_the_step(decay):
    """And its decay: at rate 0 nothing changes, and twice the rate gives twice the change."""
    assert mx.abs(take(lr=0.0, decay=decay)[1]).max() == 0
    assert mx.allclose(take(lr=2e-3, decay=decay)[1], 2 * take(lr=1e-3, decay=decay)[1], atol=1e-6)


def in_parts(accumulate, skip_above=0.0, implementation="plain", **settings):
    """Take two steps on 6 sequences; return losses, norms, carry, and the final weights."""
    model = make_model(implementation=implementation, dropout=0.0, positions="block")
    config = OptimizerConfig(optimizer="muon", lr=1e-2, clip=0.5, skip_above=skip_above)
    step = TrainingStep(model, config, segment=2, accumulate=accumulate)
    carry, came = None, []
    for seed in (3, 4):
        tokens = make_tokens(4 * K, batch=6, seed=seed)
        result = step(tokens, tokens, 1e-2, KEY, carry, **settings)
        carry = result.carry
        came += [result.loss, result.norm]
    return came, carry, joined(model.parameters())


@pytest.mark.parametrize("settings", [{}, {"close": False}, {"skip_above": 5.0}], ids=str)
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_step_in_parts_equals_a_step_on_the_whole_batch(accumulate, settings):
    """Up to rounding error: loss, norm before clipping, weights, and the carry of each row."""
    (came, carry, weights), (whole, whole_carry, expected) = in_parts(accumulate, **settings), in_parts(1, **settings)
    for one, other in zip(came, whole, strict=True):
        assert mx.allclose(one, other, rtol=1e-5)
    assert mx.allclose(weights, expected, atol=1e-5)
    if "close" in settings:
        assert carry is not None
        for one, other in zip(flat(carry).values(), flat(whole_carry).values(), strict=True):
            assert mx.allclose(one, other, atol=1e-5)


def test_parts_have_different_dropout_masks():
    model = make_model(dropout=0.4)
    tokens = mx.concatenate([TOKENS, TOKENS])
    step = TrainingStep(model, OptimizerConfig(lr=1e-9), segment=2, accumulate=2)
    both = step(tokens, tokens, 1e-9, KEY).loss
    first = TrainingStep(model, OptimizerConfig(lr=1e-9), segment=2)(TOKENS, TOKENS, 1e-9, mx.random.split(KEY)[0]).loss
    assert not mx.allclose(both, first, rtol=1e-6)
