"""Ignored targets: loss, gradient and scores depend on the other targets only."""

from dataclasses import replace

from mlx_rtx import RecurrentTransformer, loss_and_grad
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.tasks import MemorizationTask, Sequences
from mlx_rtx.training.evaluation import evaluate
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.progress import ProgressConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from tiny import TINY, K, complains, make_model, make_tokens, make_trainer

L, B = 5 * K - 1, 4
TOKENS = make_tokens(L, B)


def mask(targets, seed):
    """Return targets of which about two thirds are ignored, with different numbers per row."""
    ignored = np.random.default_rng(seed).random(targets.shape) < np.linspace(0.4, 0.9, len(targets))[:, None]
    ignored[0, -1] = False
    return mx.where(mx.array(ignored), IGNORED, targets)


@pytest.mark.parametrize("segment", [None, 1, 2])
@pytest.mark.parametrize("implementation", ["plain", "exportable"])
def test_the_gradient_is_that_of_the_targets_that_count(kind, segment, implementation):
    model = make_model(kind, implementation=implementation)
    targets = mask(make_tokens(2 * K + 1, B, 2), 0)
    asked = mx.array(np.argwhere(np.array(targets).ravel() != IGNORED).ravel())

    def plain(parameters):
        model.update(parameters)
        logits = model(TOKENS, last=targets.shape[1]).reshape(-1, 7)[asked]
        return nn.losses.cross_entropy(logits, targets.reshape(-1)[asked], reduction="mean")

    loss, gradients = mx.value_and_grad(plain)(model.parameters())
    found, own = loss_and_grad(model, TOKENS, targets, segment, masked=True)
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    for (name, a), (other, b) in zip(tree_flatten(gradients), tree_flatten(own), strict=True):
        assert name == other
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-6), name


def test_parts_with_unequal_numbers_of_targets_give_the_gradient_of_the_whole():
    targets = mask(make_tokens(L, B, 2), 1)
    results = []
    for parts in (1, 2, 4):
        step = TrainingStep(make_model(), OptimizerConfig(), 2, accumulate=parts, masked=True)
        results.append((step(TOKENS, targets, 1e-2), step.model.parameters()))
    (first, weights), *others = results
    for other, there in others:
        assert float(other.loss) == pytest.approx(float(first.loss), rel=1e-5)
        assert float(other.norm) == pytest.approx(float(first.norm), rel=1e-4)
        for (_, a), (_, b) in zip(tree_flatten(weights), tree_flatten(there), strict=True):
            assert mx.allclose(a, b, atol=2e-4)


def test_masking_without_ignored_targets_changes_nothing(kind):
    model, targets = make_model(kind), make_tokens(L, B, 2)
    plain, masked = (loss_and_grad(model, TOKENS, targets, 2, masked=masked) for masked in (False, True))
    for (_, a), (_, b) in zip(tree_flatten(plain), tree_flatten(masked), strict=True):
        assert mx.array_equal(a, b)


def test_a_batch_without_targets_has_zero_gradient():
    loss, gradients = loss_and_grad(make_model(), TOKENS, mx.full((B, 3), IGNORED), masked=True)
    assert float(loss) == 0
    assert all(mx.all(array == 0) for _, array in tree_flatten(gradients))


def test_scores_are_over_the_targets_that_count():
    model = make_model()
    targets = mask(make_tokens(L, B, 2), 2)
    targets[1] = IGNORED
    scores = evaluate(model, [Sequences(L, lambda a, b: TOKENS[:, a:b], targets, masked=True)])
    logits, classes = np.array(model(TOKENS)), np.array(targets)
    asked = classes != IGNORED
    losses = np.array(nn.losses.cross_entropy(mx.array(logits), mx.maximum(targets, 0)))
    right = logits.argmax(-1) == classes
    assert (scores.sequences, scores.targets) == (B - 1, asked.sum())
    assert scores.loss == pytest.approx(losses[asked].mean(), rel=1e-5)
    assert scores.accuracy == pytest.approx(right[asked].mean())
    whole = [right[row][asked[row]].all() for row in range(B) if asked[row].any()]
    assert scores.sequence_accuracy == pytest.approx(np.mean(whole))
    nothing = Sequences(L, lambda a, b: TOKENS[:, a:b], mx.full((B, L), IGNORED), masked=True)
    complains(evaluate, model, [nothing], words="nothing to score")


def test_a_task_with_ignored_targets_trains(tmp_path):
    task = MemorizationTask(length=4, alphabet=6)
    progress = ProgressConfig(test_samples=32)
    training = replace(TINY.training, samples=16 * 120, accumulate=2)
    config = replace(TINY, task=task, progress=progress, training=training)
    scores = make_trainer(tmp_path, config).fit()
    assert scores.loss < 0.5 * task.chance


@given(st.one_of(st.integers(-(2**40), -2), st.integers(7, 2**40)), st.integers(0, B - 1), st.integers(0, L - 1))
def test_no_other_class_is_ignored(wrong, row, column):
    targets = np.array(make_tokens(L, B, 2), np.int64)
    targets[row, column], targets[row, column - 1] = wrong, IGNORED
    targets = mx.array(targets)
    for call in (
        lambda: loss_and_grad(MODEL, TOKENS, targets, masked=True),
        lambda: TrainingStep(MODEL, OptimizerConfig(), 1, masked=True)(TOKENS, targets, 1e-3),
        lambda: evaluate(MODEL, [Sequences(L, lambda *_: TOKENS, targets, masked=True)]),
    ):
        assert f"targets: {wrong} at ({row}, {column}); must lie in -1 … 6" in complains(call)


MODEL = make_model(RecurrentTransformer)
