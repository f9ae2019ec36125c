"""Numbers that are not finite are detected and never trained on, and runs recover from them."""

import math
from dataclasses import replace

from mlx_rtx import Characters, UserError, evaluate, make_sampler, train
from mlx_rtx.generation import decoding
from mlx_rtx.generation.decoding import generate, token_stream
from mlx_rtx.support.trees import flat, not_finite
from mlx_rtx.tasks import Sequences
from mlx_rtx.training.evaluation import evaluate as score
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tiny import FLAGS, HISTORIES, TINY, K, events, make_model, make_tokens, make_trainer, text_run

GUARDED = OptimizerConfig(lr=1e-2, average=0.9, skip_above=5.0)


def spoilt(tree, by=math.nan):
    return tree_map(lambda array: array * by if array.dtype == mx.float32 else array, tree)


def kept(*trees):
    return {name: np.array(array) for name, array in flat(list(trees)).items()}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("what", ["rate", "moments"])
def test_a_step_to_weights_that_are_not_finite_is_skipped(optimizer, what):
    """Even if the gradient is finite. Regression test: such a step made all weights NaN."""
    model = make_model()
    config = OptimizerConfig(optimizer=optimizer, weight_decay=0.1)
    opt = make_optimizer(config, model)
    gradients = tree_map(mx.ones_like, model.trainable_parameters())
    assert apply_gradients(model, opt, gradients, config).taken.item()
    if what == "moments":
        opt.state = spoilt(opt.state)
    opt.learning_rate = 1e38 if what == "rate" else 1e-3
    before = kept(model.parameters(), opt.state)
    update = apply_gradients(model, opt, tree_map(lambda g: 1e3 * g, gradients), config)
    assert not update.taken.item()
    assert math.isnan(update.norm.item())
    for name, array in kept(model.parameters(), opt.state).items():
        assert np.array_equal(array, before[name], equal_nan=True), name


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_carry_that_is_not_finite_is_reset_after_one_step(history, bad):
    """Regression test: it remained until the text restarted, and all steps until then were skipped."""
    step = TrainingStep(make_model(history=history, positions="block"), OptimizerConfig(), segment=1)
    tokens = make_tokens(3 * K)
    carry = spoilt(step(tokens, tokens, 1e-3, close=False).carry, bad)
    first = step(tokens, tokens, 1e-3, carry=carry, close=False)
    second = step(tokens, tokens, 1e-3, carry=first.carry, close=False)
    assert [first.taken.item(), second.taken.item()] == [False, True]
    assert not not_finite([first.carry, second.carry, step.model.parameters()])


def spoil(trainer, what):
    """Make a part of the training state NaN."""
    step = trainer.train_step
    if what == "moments":
        step.optimizer.state = spoilt(step.optimizer.state)
    elif what == "average":
        step.average.state = spoilt(step.average.state)
    elif what == "norms":
        step.guard.state = spoilt(step.guard.state)
    else:
        trainer.model.layers[0].tau.mlp_in = trainer.model.layers[0].tau.mlp_in * math.inf


@pytest.mark.parametrize(
    ("what", "kind"), [("moments", "restart"), ("average", "restart"), ("norms", "restart"), ("weights", "collapse")]
)
@pytest.mark.parametrize("stored", [False, True], ids=["on the way", "in a checkpoint"])
def test_a_run_recovers_from_them(what, kind, stored, tmp_path):
    """At the next report, validation or resume. Regression test: averages and norms remained NaN."""
    training = replace(TINY.training, report_every=3, validate_every=10, samples=16 * 20)
    config = replace(TINY, optimizer=GUARDED, training=training)
    trainer = make_trainer(tmp_path, config)
    while trainer.step < 11:
        trainer._take_step()
        if trainer.step == 10:
            trainer._validate()
    spoil(trainer, what)
    if stored:
        trainer.save()
        trainer = make_trainer(tmp_path, config, resume=True)
    scores = trainer.fit()
    assert math.isfinite(scores.loss)
    assert not not_finite([trainer.model.parameters(), trainer.train_step.state])
    (found,) = events(tmp_path, kind)
    assert found["step"] == (11 if stored else 20 if what == "average" else 12)
    assert trainer.step == 20


def test_frozen_weights_that_are_not_finite_end_the_run(tmp_path):
    """No finite weights are left to restore; the reason is printed in one line."""
    trainer = make_trainer(tmp_path, replace(TINY, architecture=replace(TINY.architecture, train_alpha=False)))
    trainer.model.layers[0].alpha = mx.array(math.nan)
    with pytest.raises(UserError, match=r"layers\.0\.alpha.* is not finite, and no finite weights are saved") as error:
        trainer.fit()
    assert "\n" not in str(error.value)


def test_a_validation_of_such_weights_generates_no_sample(tmp_path):
    """It prints the reason, and the best weights are restored."""
    trainer = make_trainer(tmp_path / "run", text_run(tmp_path))
    for _ in range(2):
        trainer._take_step()
        trainer._validate()
        spoil(trainer, "weights")
    samples = [event["sample"] for event in events(tmp_path / "run", "sample")]
    assert [sample.startswith("no sample: model: its logits") for sample in samples] == [False, True]
    assert len(events(tmp_path / "run", "collapse")) == 1


def test_tokens_with_scores_that_are_not_finite_count_as_wrong():
    """Regression test: argmax of NaN is class 0, so one image in ten counted as right."""
    model = make_model()
    model.layers[0].alpha = mx.array(math.nan)
    tokens, targets = make_tokens(3 * K), mx.zeros((2, 1), mx.int32)
    scores = score(model, [Sequences(3 * K, lambda start, end: tokens[:, start:end], targets)])
    assert math.isnan(scores.loss)
    assert scores.accuracy == scores.sequence_accuracy == 0


@pytest.mark.parametrize("sampler", [make_sampler(), make_sampler(temp=1.0)], ids=["likeliest", "drawn"])
def test_generation_ends_on_logits_that_are_not_finite(kind, sampler, monkeypatch):
    """From the start, or after the state overflowed. Regression test: the first character was repeated endlessly."""
    model = make_model(kind, positions="block")
    model.embedding.norm.weight = model.embedding.norm.weight * mx.nan
    with pytest.raises(UserError, match=r"^model: its logits before token 3 are not finite"):
        generate(model, Characters("abcdefg"), "abc", sampler=sampler)
    model, drawn, feed = make_model(kind, positions="block"), [], type(model).feed

    def overflowing(self, tokens, state, parameters):
        logits, state = feed(self, tokens, state, parameters)
        return logits * (mx.inf if len(drawn) >= 20 else 1), state

    monkeypatch.setattr(type(model), "feed", overflowing)

    def draw(count):
        drawn.clear()
        for tokens, _ in token_stream(model, [[1, 2, 3]], count, sampler):
            drawn.append(tokens)

    with pytest.raises(UserError, match="not finite"):
        draw(1000)
    assert 20 <= len(drawn) <= 20 + decoding.CHECK_EVERY
    monkeypatch.setattr(decoding, "CHECK_EVERY", 1000)
    with pytest.raises(UserError, match="not finite"):  # at the end, independently of the last check
        draw(30)
    assert len(drawn) == 29


def test_a_score_that_is_not_finite_is_explained(tmp_path, capsys, monkeypatch):
    train.main([*FLAGS, f"--out={tmp_path / 'run'}"])
    monkeypatch.setattr(evaluate, "evaluate", lambda *a: replace(score(*a), loss=math.nan, loss_se=math.nan))
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run"), "--samples=4"])
    assert "note: some losses are not finite" in capsys.readouterr().out
