"""Scores of models with known scores."""

import math

from mlx_rtx import UserError
from mlx_rtx.model.base import ModelWeights
from mlx_rtx.model.segment import SegmentOutput
from mlx_rtx.tasks import CopyTask, Sequences
from mlx_rtx.training import evaluation
from mlx_rtx.training.evaluation import evaluate, interval

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tiny import HISTORIES, K, make_model, make_tokens

TASK = CopyTask(noise=6, payload=3, alphabet=8)


class Fixed(nn.Module):
    """Outputs the payload with a given confidence; a fraction of the sequences has a wrong last token."""

    def __init__(self, wrong=0.0, confidence=20.0):
        super().__init__()
        self._wrong, self._confidence = wrong, confidence

    @property
    def embedding(self):
        return self

    def spans(self, length, segment):
        return [(0, length)]

    def check(self, *_):
        pass

    check_tokens = check_targets = check

    def fold_weights(self, parameters):
        return ModelWeights({}, ())

    def run(self, weights, segment, carry):
        tokens, last = segment.tokens, segment.outputs_wanted
        output = tokens[:, :last]
        key = mx.stack([mx.array(0), tokens.sum()]).astype(mx.uint32)
        slip = mx.random.uniform(shape=(len(tokens), 1), key=key) < self._wrong
        return SegmentOutput(mx.where(slip & (mx.arange(last) == last - 1), 1 + output % 6, output), carry, ())

    def readout(self, output, weights):
        return self._confidence * (output[..., None] == mx.arange(8)).astype(mx.float32)


@pytest.mark.parametrize("last", [1, K + 1, 6 * K - 1])
@pytest.mark.parametrize("history", HISTORIES)
def test_evaluation_in_segments_equals_evaluation_of_the_whole(history, last, kind, monkeypatch):
    monkeypatch.setattr(evaluation, "SEGMENT", 2)
    model, tokens = make_model(kind, history=history, layers=2), make_tokens(6 * K - 1)
    assert mx.allclose(
        mx.concatenate(
            list(evaluation.iter_logits(model, lambda start, end: tokens[:, start:end], tokens.shape[1], last)), axis=1
        ),
        model(tokens, last=last),
        atol=1e-5,
    )


def test_a_perfect_model():
    scores = evaluate(Fixed(), TASK.held_out("fresh", 50, 8, mx.random.key(0)))
    assert (scores.accuracy, scores.sequence_accuracy, scores.sequences) == (1, 1, 50)
    assert scores.loss < 1e-6
    assert scores.sequence_accuracy_se == 0


def test_a_uniform_model_scores_the_chance_loss():
    scores = evaluate(Fixed(confidence=0.0), TASK.held_out("fresh", 20, 20, mx.random.key(0)))
    assert scores.loss == pytest.approx(math.log(8), rel=1e-5)
    assert scores.loss_se == pytest.approx(0, abs=1e-6)


def test_errors_and_their_standard_error():
    scores = evaluate(Fixed(wrong=0.4), TASK.held_out("fresh", 600, 50, mx.random.key(0)))
    assert abs(scores.sequence_accuracy - 0.6) < 4 * scores.sequence_accuracy_se
    assert scores.sequence_accuracy_se == pytest.approx(math.sqrt(0.6 * 0.4 / 600), rel=0.1)
    assert 1 - scores.accuracy == pytest.approx((1 - scores.sequence_accuracy) / 3, rel=1e-4)


def test_one_sample_has_no_standard_error():
    assert np.isnan(evaluate(Fixed(), TASK.held_out("fresh", 1, 8, mx.random.key(0))).loss_se)


def test_the_models_mode_is_restored():
    model = Fixed()
    model.train()
    evaluate(model, TASK.held_out("fresh", 2, 2, mx.random.key(0)))
    assert model.training


def test_no_dropout_in_any_mode(kind):
    scores = []
    for training in (True, False):
        model = make_model(kind, dropout=0.5, vocab_size=8)
        model.train(training)
        scores.append(evaluate(model, TASK.held_out("fresh", 20, 8, mx.random.key(0))))
    assert scores[0] == scores[1]


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="nothing to score"):
        evaluate(Fixed(), [])
    with pytest.raises(UserError, match="samples=0"):
        evaluate(Fixed(), TASK.held_out("fresh", 0, 2, mx.random.key(0)))


def test_sequences_are_weighted_by_their_number_of_targets():
    """Means are over targets; the error is that of a ratio, equal to the usual one for equal numbers of targets."""
    generator = np.random.default_rng(0)
    model, parts = make_model(), []
    for n in (3, 3, 5):
        tokens, targets = make_tokens(9, 4, n), mx.array(generator.integers(0, 7, (4, n)))
        parts.append(Sequences(9, lambda start, end, tokens=tokens: tokens[:, start:end], targets))
    scores = evaluate(model, parts)
    losses, right = [], []
    for (_, read, targets, *_), n in zip(parts, (3, 3, 5), strict=True):
        logits = model(read(0, 9), last=n)
        losses.append(np.array(nn.losses.cross_entropy(logits, targets)))
        right.append(np.array(mx.argmax(logits, axis=-1) == targets))
    assert (scores.sequences, scores.targets) == (12, 44)
    assert scores.loss == pytest.approx(np.concatenate([part.ravel() for part in losses]).mean(), rel=1e-5)
    assert scores.accuracy == pytest.approx(np.concatenate([part.ravel() for part in right]).mean())
    assert scores.bits_per_character == pytest.approx(scores.loss / math.log(2))
    same = evaluate(model, parts[:2])
    means = np.concatenate(losses[:2]).mean(axis=1)
    assert same.loss_se == pytest.approx(means.std(ddof=1) / math.sqrt(8), rel=1e-4)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1)]
)
def test_wilsons_interval(right, count, low, high):
    """Compared with values printed in textbooks."""
    assert interval(right / count, count) == pytest.approx((low, high), abs=2e-4)
