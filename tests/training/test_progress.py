"""Best weights, collapses, learning-rate decay and patience of a training without stages, with synthetic losses."""

import json
import math

from mlx_rtx import UserError
from mlx_rtx.training.progress import Progress, ProgressConfig, Verdict

import pytest

CHANCE = math.log(14)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_collapse_takes_the_given_number_of_validations(patience):
    progress = Progress(ProgressConfig(collapse_patience=patience), 1e-3, CHANCE)
    verdicts = [progress.observe(loss) for loss in (0.1, *[CHANCE] * patience)]
    assert verdicts == [Verdict.BEST, *[Verdict.GOING] * (patience - 1), Verdict.COLLAPSED]


def test_best_weights_and_collapse_without_stages():
    """A loss that never falls below half the loss of guessing, as for images, is not a collapse."""
    progress = Progress(ProgressConfig(collapse_patience=2), 1e-3, CHANCE)
    assert progress.stage == {}
    assert [progress.observe(loss) for loss in (2.5, 2.0, 2.1, 2.2, 1.9)] == [
        Verdict.BEST, Verdict.BEST, Verdict.GOING, Verdict.GOING, Verdict.BEST
    ]  # fmt: skip
    assert progress.observe(math.nan) is Verdict.COLLAPSED
    assert progress.lr == 5e-4
    assert not progress.solved(0.0, 1.0)


@pytest.mark.parametrize(("decay", "rates"), [("none", [1, 1, 1]), ("cosine", [1, 0.55, 0.1])])
def test_learning_rate_decay_over_the_samples(decay, rates):
    progress = Progress(ProgressConfig(lr_decay=decay), 1.0, CHANCE)
    assert [progress.rate(done) for done in (0, 0.5, 1)] == pytest.approx(rates)


def test_linear_decay_and_its_floor():
    progress = Progress(ProgressConfig(lr_decay="linear", lr_floor=0.2), 1.0, CHANCE)
    assert [progress.rate(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    progress = Progress(ProgressConfig(lr_decay="cosine", lr_floor=0.0), 1.0, CHANCE)
    assert [progress.rate(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0.0], abs=1e-9)
    with pytest.raises(UserError, match="lr_floor"):
        ProgressConfig(lr_floor=1.5)


def test_patience_counts_consecutive_validations_without_better_weights():
    progress = Progress(ProgressConfig(patience=3), lr=1e-3, chance=2.3)
    progress.observe(2.0)
    for loss in (2.1, 2.1, 1.9, 2.0, 2.0):  # the third is better
        progress.observe(loss)
        assert not progress.exhausted
    again = Progress(ProgressConfig(patience=3), lr=1e-3, chance=2.3)
    again.restore(json.loads(json.dumps(progress.state())))
    for one in (progress, again):
        one.observe(1.9)
        assert one.exhausted
    averaged = Progress(ProgressConfig(patience=1), lr=1e-3, chance=2.3)
    averaged.observe(2.0)
    averaged.observe(2.1, 1.9)
    assert not averaged.exhausted
    averaged.observe(2.1, 2.1)
    assert averaged.exhausted


def test_without_patience_a_run_never_ends_early():
    progress = Progress(ProgressConfig(), lr=1e-3, chance=2.3)
    for _ in range(100):
        progress.observe(2.0)
    assert not progress.exhausted
