"""Moving average of the weights: its formula, when it is updated, and when it is kept."""

import math
from dataclasses import replace

from mlx_rtx import RecurrentTransformer, RegularTransformer, load
from mlx_rtx.plots.run_history import read_history
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.trees import flat
from mlx_rtx.training.averaging import WeightAverage
from mlx_rtx.training.curriculum import CurriculumConfig
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tiny import TINY, K, check_resuming, events, make_model, make_tokens, make_trainer, saved, text_run

BETA = 0.9
ONE_STAGE = replace(
    TINY,
    progress=CurriculumConfig(start_noise=12, stop_loss=0, test_samples=32),
    optimizer=OptimizerConfig(lr=1e-2, average=BETA),
)


def weights(tree):
    return {name: np.array(array, np.float64) for name, array in flat(tree).items()}


def assert_equal(first, second, atol=0.0):
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.abs(array - second[name]).max() <= atol, name


def advance(trainer):
    trainer._take_step()
    trainer._validate()


def scoring(trainer, monkeypatch, losses, **others):
    """Make each validation return the next of these pairs of losses, of the weights and of their average."""
    real, pairs, present = trainer._score, iter(losses), []

    def score(event, data, samples, key, averaged=False):
        if event == "validation" and not averaged:
            present[:] = next(pairs)
        found = real(event, data, samples, key, averaged)
        return replace(found, loss=present[averaged], **others) if event == "validation" else found

    monkeypatch.setattr(trainer, "_score", score)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RegularTransformer, {}),
        (RecurrentTransformer, {}),
        (RecurrentTransformer, {"optimizer": "muon"}),
        (RecurrentTransformer, {"weight_decay": 0.1}),
    ],
)
def test_average_matches_its_formula_after_each_step(kind, changes):
    model, tokens, targets = make_model(kind), make_tokens(4 * K), make_tokens(3, seed=2)
    step = TrainingStep(model, OptimizerConfig(average=BETA, **changes), segment=1)
    expected = weights(model.trainable_parameters())
    assert_equal(weights(step.average.weights), expected)
    for t in range(100):
        step(tokens, targets, lr=1e-2)
        decay = min(BETA, (1 + t) / (10 + t))  # reaches β after 80 steps
        now = weights(model.trainable_parameters())
        expected = {name: decay * average + (1 - decay) * now[name] for name, average in expected.items()}
    assert_equal(weights(step.average.weights), expected, atol=1e-5)
    apart = {name: np.abs(now[name] - average).max() for name, average in expected.items()}
    assert max(apart.values()) > 1e-3  # otherwise weights would pass as their average


@pytest.mark.parametrize("frozen", [False, True])
def test_only_trainable_parameters_are_averaged(frozen):
    model = make_model(train_alpha=not frozen)
    average = WeightAverage(model, BETA, Execution())
    assert flat(average.weights).keys() == flat(model.trainable_parameters()).keys()
    assert ("layers.0.alpha" in flat(average.weights)) is not frozen


def test_a_skipped_step_does_not_change_the_average():
    model, tokens, targets = make_model(), make_tokens(4 * K), make_tokens(3, seed=2)
    step = TrainingStep(model, OptimizerConfig(average=BETA), segment=1)
    for _ in range(3):
        step(tokens, targets, lr=1e-2)
    before, steps = weights(step.average.weights), step.average.state["steps"].item()
    assert steps == 3
    model.update(tree_map(lambda w: w * math.nan, model.parameters()))
    assert not step(tokens, targets, lr=1e-2).taken.item()
    assert_equal(weights(step.average.weights), before)
    assert step.average.state["steps"].item() == steps


def test_averaging_does_not_change_training(tmp_path):
    """As long as no collapse restores the average."""
    make_trainer(tmp_path / "with", ONE_STAGE).fit()
    make_trainer(tmp_path / "without", replace(ONE_STAGE, optimizer=OptimizerConfig(lr=1e-2))).fit()
    (found, counted), (expected, others) = saved(tmp_path / "with"), saved(tmp_path / "without")
    assert counted["step"] == others["step"] == 40
    assert expected.keys() == {name for name in found if not name.startswith("optimizer.average.")}
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("stop", [5, 14, 33])
def test_a_run_with_averaging_resumes_bit_exactly(tmp_path, stop):
    config = replace(TINY, optimizer=ONE_STAGE.optimizer)
    check_resuming(tmp_path, config, stop)
    kept = [weights(load(tmp_path / run)[0].parameters()) for run in ("parts", "whole")]
    assert_equal(*kept)


def test_both_are_scored_on_the_same_sequences(tmp_path, monkeypatch, capsys):
    """With a learning rate of 0 both are the same weights, so their scores must be equal."""
    trainer = make_trainer(tmp_path, ONE_STAGE)
    monkeypatch.setattr(trainer, "_rate", lambda: 0.0)
    trainer.fit()
    found = events(tmp_path, "validation")
    assert [event.pop("averaged", False) for event in found] == [False, True] * 6
    assert found[::2] == found[1::2]
    assert capsys.readouterr().out.count("\nvalidation averaged noise=12 loss=") == 6
    assert len(read_history(tmp_path).validation_loss) == 6


def test_the_weights_kept_have_the_lowest_loss_of_all_scored(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, ONE_STAGE)
    pairs = [(2.0, 2.1), (1.9, 1.5), (1.6, 1.7), (1.4, 1.3), (1.2, math.nan), (math.inf, 1.1)]
    scoring(trainer, monkeypatch, pairs)
    for choice in ("own", "average", None, "average", "own"):
        advance(trainer)
        average, own = weights(trainer.train_step.average.weights), weights(trainer.model.parameters())
        assert max(np.abs(own[name] - average[name]).max() for name in own) > 1e-4
        kept = {"own": own, "average": average, None: locals().get("kept")}[choice]
        assert_equal(weights(load(tmp_path)[0].parameters()), kept)
    trainer._take_step()
    average = weights(trainer.train_step.average.weights)
    trainer._validate()  # the weights collapse, but their average is the best so far
    assert len(events(tmp_path, "collapse")) == 1
    assert_equal(weights(load(tmp_path)[0].parameters()), average)
    assert_equal(weights(trainer.model.parameters()), average)


def test_a_stage_keeps_its_best_weights_even_if_not_its_last(tmp_path, monkeypatch):
    """The loss of the weights ends a stage; an earlier average may be what is kept."""
    trainer = make_trainer(tmp_path, replace(ONE_STAGE, progress=replace(TINY.progress, advance_below=1.0)))
    scoring(trainer, monkeypatch, [(1.5, 0.5), (0.9, 0.7), (0.8, 0.6)])
    advance(trainer)
    earlier = weights(trainer.train_step.average.weights)
    assert trainer.progress.passed == 0
    advance(trainer)
    assert trainer.progress.passed == 1
    assert_equal(weights(load(tmp_path)[0].parameters()), earlier)
    advance(trainer)  # the next stage starts without a best loss
    assert_equal(weights(load(tmp_path)[0].parameters()), weights(trainer.train_step.average.weights))


def test_the_average_restarts_from_the_restored_weights(tmp_path):
    trainer = make_trainer(tmp_path, ONE_STAGE)
    for _ in range(3):
        advance(trainer)
    trainer.model.update(tree_map(lambda w: w * math.nan, trainer.model.parameters()))
    advance(trainer)
    assert_equal(weights(trainer.train_step.average.weights), weights(trainer.model.trainable_parameters()))
    assert trainer.train_step.average.state["steps"].item() == 0


@pytest.mark.parametrize("sequence_accuracy", [1.0, 0.99])
@pytest.mark.parametrize("losses", [(0.2, 0.1), (0.1, 0.2), (0.6, 0.1), (0.1, 0.6)])
def test_the_scores_of_the_average_end_a_run(tmp_path, monkeypatch, losses, sequence_accuracy):
    """Independently of the loss of the weights, and even if an earlier validation had a lower loss."""
    trainer = make_trainer(tmp_path, replace(ONE_STAGE, progress=replace(ONE_STAGE.progress, stop_loss=0.5)))
    scoring(trainer, monkeypatch, [losses], sequence_accuracy=1.0)
    real, confirmed = trainer._score, []

    def score(event, *rest):
        if event != "confirmation":
            return real(event, *rest)
        confirmed.append(weights(trainer.model.parameters()))
        return replace(real(event, *rest), sequence_accuracy=sequence_accuracy)

    monkeypatch.setattr(trainer, "_score", score)
    trainer.progress.best = 0.05
    advance(trainer)
    assert trainer.finished is (losses[1] <= 0.5 and sequence_accuracy == 1)
    assert [event["averaged"] for event in events(tmp_path, "confirmation")] == [True] * (losses[1] <= 0.5)
    average = weights(trainer.train_step.average.weights)
    for tried in confirmed:
        assert_equal(tried, average)
    if trainer.finished:
        assert_equal(weights(load(tmp_path)[0].parameters()), average)
    else:
        assert not (tmp_path / "model.safetensors").exists()  # the earlier validation was better


def test_weights_of_a_text_run_are_averaged_too(tmp_path):
    path = tmp_path / "run"
    config = replace(text_run(tmp_path, stateful=True), optimizer=ONE_STAGE.optimizer)
    trainer = make_trainer(path, config)
    scores = trainer.fit()
    assert scores.loss == pytest.approx(min(event["loss"] for event in events(path, "validation")), abs=1e-6)
    assert mx.all(mx.isfinite(trainer.train_step.average.state["weights"]))
