"""A training step: down the gradient of its batch, clipped, by the learning rate it is given."""

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
    """One step: its loss, and how far each weight moves."""
    model = make_model(dropout=0.4)
    before = joined(model.parameters())
    step = TrainingStep(model, OptimizerConfig(lr=1.0, clip=clip, weight_decay=decay), segment=1, detach=detach)
    loss = step(TOKENS, TARGETS, lr, **{"key": KEY, **settings}).loss
    return loss, joined(model.parameters()) - before


@pytest.mark.parametrize("settings", [{}, {"detach": 1}, {"close": False}, {"key": mx.random.key(8)}], ids=str)
def test_the_first_step_goes_down_the_gradient(settings):
    """By g / (|g| + 1e-8) times the rate: Adam's first step. The gradient is that of training, with dropout."""
    model = make_model(dropout=0.4)
    model.train()
    loss, gradients = loss_and_grad(model, TOKENS, TARGETS, 1, **{"key": KEY, **settings})
    g = joined(gradients)
    found, moved = take(**settings)
    assert mx.allclose(found, loss, rtol=1e-6)
    assert mx.allclose(moved, -1e-3 * g / (mx.abs(g) + 1e-8), atol=1e-5)


def test_each_setting_changes_the_step():
    """Else the test above would not notice one that is left out."""
    moves = [take(**settings)[1] for settings in ({}, {"detach": 1}, {"close": False}, {"key": mx.random.key(8)})]
    for other in moves[1:]:
        assert mx.abs(moves[0] - other).max() > 1e-4


def test_gradients_are_clipped_as_the_settings_say():
    """So far that what is left is far below Adam's epsilon, nothing moves; where they are below the limit, all does."""
    _, unclipped = take()
    assert mx.array_equal(take(clip=1e9)[1], unclipped)
    assert mx.abs(unclipped).max() > 9e-4
    assert mx.abs(take(clip=1e-12)[1]).max() < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_learning_rate_scales_the_step(decay):
    """Decay too: at rate 0 nothing moves, and twice the rate goes twice as far."""
    assert mx.abs(take(lr=0.0, decay=decay)[1]).max() == 0
    assert mx.allclose(take(lr=2e-3, decay=decay)[1], 2 * take(lr=1e-3, decay=decay)[1], atol=1e-6)


def in_parts(accumulate, skip_above=0.0, implementation="plain", **settings):
    """Two steps on 6 sequences: losses, norms, carry, and the weights after them."""
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
def test_a_step_in_parts_is_that_of_the_whole(accumulate, settings):
    """To rounding: loss, norm before clipping, weights, and the state of each row, which goes on in the next step."""
    (came, carry, weights), (whole, whole_carry, expected) = in_parts(accumulate, **settings), in_parts(1, **settings)
    for one, other in zip(came, whole, strict=True):
        assert mx.allclose(one, other, rtol=1e-5)
    assert mx.allclose(weights, expected, atol=1e-5)
    if "close" in settings:
        assert carry is not None
        for one, other in zip(flat(carry).values(), flat(whole_carry).values(), strict=True):
            assert mx.allclose(one, other, atol=1e-5)


def test_parts_draw_dropout_masks_of_their_own():
    model = make_model(dropout=0.4)
    tokens = mx.concatenate([TOKENS, TOKENS])
    step = TrainingStep(model, OptimizerConfig(lr=1e-9), segment=2, accumulate=2)
    both = step(tokens, tokens, 1e-9, KEY).loss
    first = TrainingStep(model, OptimizerConfig(lr=1e-9), segment=2)(TOKENS, TOKENS, 1e-9, mx.random.split(KEY)[0]).loss
    assert not mx.allclose(both, first, rtol=1e-6)
