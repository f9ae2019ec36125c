"""Decisions of the trainer: random keys, learning rate, weights to keep and weights to restore."""

import math
from dataclasses import replace

from mlx_rtx import load, train
from mlx_rtx.support.randomness import step_key
from mlx_rtx.support.trees import flat
from mlx_rtx.tasks import CopyTask
from mlx_rtx.training.curriculum import CurriculumConfig
from mlx_rtx.training.step import TrainingStep

import numpy as np
import pytest
from mlx.utils import tree_map

from tiny import TINY, events, make_trainer, same, saved, text_run

ONE_STAGE = replace(TINY, progress=CurriculumConfig(start_noise=12, stop_loss=0, test_samples=32))
ANY_LOSS_SOLVES = replace(ONE_STAGE, progress=replace(ONE_STAGE.progress, stop_loss=9.0))


def weights(model):
    return {name: np.array(array) for name, array in flat(model.parameters()).items()}


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def advance(trainer):
    """Take a step and validate."""
    trainer._take_step()
    trainer._validate()


def collapse(trainer, path):
    """Take a step with weights that are not finite, and validate."""
    before = len(events(path, "collapse"))
    trainer.model.update(tree_map(lambda w: w * math.nan, trainer.model.parameters()))
    advance(trainer)
    assert len(events(path, "collapse")) == before + 1


def scoring(trainer, monkeypatch, scores):
    """Replace scores by ``scores(event)``, a dictionary for each event."""
    real = trainer._score
    monkeypatch.setattr(trainer, "_score", lambda event, *rest: replace(real(event, *rest), **scores(event)))


def watch_steps(monkeypatch, name):
    """Return a list that records the argument of that name of each following training step."""
    given, real = [], TrainingStep.take

    def noting(self, *batch, **settings):
        given.append(settings[name])
        return real(self, *batch, **settings)

    monkeypatch.setattr(TrainingStep, "take", noting)
    return given


def test_every_purpose_has_its_own_key_at_every_step(tmp_path, monkeypatch):
    """For training data, dropout, and the held-out sequences of each validation, confirmation and the final scores."""
    drawn, held_out, dropped = [], [], watch_steps(monkeypatch, "key")

    class Watched(CopyTask):
        def draw(self, key, size):
            drawn.append(key)
            return super().draw(key, size)

        def held_out(self, split, samples, batch, key):
            held_out.append(key)
            return super().held_out(split, samples, batch, key)

    config = replace(
        ANY_LOSS_SOLVES,
        task=Watched(noise=12, payload=2, alphabet=5),
        training=replace(TINY.training, samples=16 * 14, seed=3),
    )
    trainer = make_trainer(tmp_path, config)
    scoring(trainer, monkeypatch, lambda event: {"sequence_accuracy": 0.0 if event == "confirmation" else 1.0})
    trainer.fit()

    def key(step, purpose):
        return step_key(3, step, purpose).tolist()

    drawn, dropped, held_out = ([key.tolist() for key in keys] for keys in (drawn, dropped, held_out))
    assert drawn == [key(step, "data") for step in range(14)]
    assert dropped == [key(step, "dropout") for step in range(14)]
    first, _, second, _, final = held_out  # each validation is followed by a confirmation
    assert [first, second] == [key(7, "validation"), key(14, "validation")]
    assert final == key(14, "test")
    assert len(set(map(tuple, drawn + dropped + held_out))) == 14 + 14 + 5


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_the_learning_rate_depends_on_the_samples_used(tmp_path, monkeypatch, decay):
    config = replace(ONE_STAGE, progress=replace(ONE_STAGE.progress, lr_rule="constant", lr_decay=decay))
    rates, trainer = watch_steps(monkeypatch, "lr"), make_trainer(tmp_path, config)
    for _ in range(40):
        trainer._take_step()
    falling = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(40) / 40)) / 2
    assert rates == pytest.approx(1e-2 * (falling if decay == "cosine" else np.ones(40)))


def test_the_weights_that_end_a_stage_are_kept(tmp_path):
    """In the folder and in memory, even if the first validation of the stage is its last."""
    trainer = make_trainer(tmp_path, replace(TINY, progress=replace(TINY.progress, advance_below=99.0)))
    for passed in (1, 2):
        advance(trainer)
        assert trainer.progress.passed == passed
        kept = weights(trainer.model)
        assert equal(weights(load(tmp_path)[0]), kept)
        collapse(trainer, tmp_path)
        assert equal(weights(trainer.model), kept)


def test_only_better_weights_are_kept(tmp_path, monkeypatch):
    trainer, losses = make_trainer(tmp_path, ONE_STAGE), iter([2.0, 2.0, 2.5, 1.9, math.nan])
    scoring(trainer, monkeypatch, lambda event: {"loss": next(losses)})
    kept: dict = {}
    for better in (True, False, False, True):
        advance(trainer)
        kept = weights(trainer.model) if better else kept
        assert equal(weights(load(tmp_path)[0]), kept)
        assert equal(weights(trainer.model), kept) is better
    advance(trainer)  # a loss that is not finite: a collapse
    assert equal(weights(trainer.model), kept)


def test_a_collapse_after_a_resume_restores_the_best_weights_before_the_stop(tmp_path):
    trainer = make_trainer(tmp_path, ONE_STAGE)
    advance(trainer)
    best = weights(trainer.model)
    trainer._take_step()  # the weights at the stop are not the best
    trainer.save()
    going_on = make_trainer(tmp_path, ONE_STAGE, resume=True)
    assert not equal(weights(going_on.model), best)
    collapse(going_on, tmp_path)
    assert equal(weights(going_on.model), best)


def test_a_collapse_resets_the_carry_of_a_stateful_run(tmp_path):
    """The carry of such weights is not finite either; the restored weights must not continue from it."""
    path = tmp_path / "run"
    trainer = make_trainer(path, text_run(tmp_path, stateful=True))
    advance(trainer)
    collapse(trainer, path)
    assert trainer.data.batch(0, trainer.step, 16).continues  # it would continue from a carry if there were one
    trainer._take_step()
    trainer._report()
    assert math.isfinite(events(path, "train")[-1]["loss"])


def test_weights_that_solve_the_task_are_kept_even_if_another_validation_was_better(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, ANY_LOSS_SOLVES)
    scoring(
        trainer, monkeypatch, lambda event: {"loss": trainer.step / 10, "sequence_accuracy": float(trainer.step == 2)}
    )
    advance(trainer)
    assert not trainer.finished
    advance(trainer)
    assert trainer.finished
    assert equal(weights(load(tmp_path)[0]), weights(trainer.model))


def test_a_solved_run_stays_solved(tmp_path, monkeypatch):
    for resume in (False, True):
        trainer = make_trainer(tmp_path, ANY_LOSS_SOLVES, resume)
        scoring(trainer, monkeypatch, lambda event: {"sequence_accuracy": 1.0})
        trainer.fit()
        assert trainer.finished
        assert trainer.step == 7  # its first validation, although 40 steps are allowed


def test_the_end_scores_the_best_weights_on_the_whole_task(tmp_path, monkeypatch):
    """Not the latest weights, and not at the noise of the last stage reached."""
    config = replace(TINY, progress=replace(TINY.progress, advance_below=1e-9))
    trainer = make_trainer(tmp_path, replace(config, training=replace(TINY.training, samples=16 * 14)))
    scored = {}

    def scores(event):
        scored[event, trainer.step] = weights(trainer.model)
        return {"loss": float(trainer.step)}  # the first validation is the best

    scoring(trainer, monkeypatch, scores)
    trainer.fit()
    assert equal(scored["final", 14], scored["validation", 7])
    assert not equal(scored["final", 14], scored["validation", 14])
    assert [event["noise"] for event in events(tmp_path, "validation") + events(tmp_path, "final")] == [3, 3, 12]


def test_training_reads_no_test_split(tmp_path, monkeypatch):
    read, real = [], CopyTask.held_out

    def held_out(self, split, *rest):
        read.append(split)
        return real(self, split, *rest)

    monkeypatch.setattr(CopyTask, "splits", ("validation", "test"))
    monkeypatch.setattr(CopyTask, "held_out", held_out)
    make_trainer(tmp_path, replace(ONE_STAGE, training=replace(TINY.training, samples=16 * 7))).fit()
    assert read == ["validation"] * 2  # one during training and one at the end


def test_a_low_loss_does_not_end_a_run_while_sequences_are_wrong(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, replace(ANY_LOSS_SOLVES, training=replace(TINY.training, samples=16 * 7)))
    scoring(trainer, monkeypatch, lambda event: {"loss": 0.0, "sequence_accuracy": 0.99})
    trainer.fit()
    assert not trainer.finished
    assert not events(tmp_path, "confirmation")


def test_a_run_without_better_weights_ends_early_with_the_best(tmp_path, capsys, monkeypatch):
    """With a learning rate that destroys the weights; resuming it then changes nothing."""
    (tmp_path / "t.txt").write_text("To be, or not to be, that is the question.\n" * 20)
    flags = ["text", "--data", str(tmp_path / "t.txt"), "--length=16", "--block=4", "--dim=8", "--heads=2", "--batch=4"]
    flags += ["--validate-every=2", "--samples=400", "--lr=0.3", "--clip=0", "--average=0", "--sample=0", "--dropout=0"]
    run = tmp_path / "run"
    train.main([*flags, "--patience=3", "--out", str(run)])
    output = capsys.readouterr().out
    assert "until: 3 validations without better weights, at most 400 samples" in output
    assert "no better weights in 3 validations: ended early" in output
    losses = [event["loss"] for event in events(run, "validation")]
    assert len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 4
    assert events(run, "final")[0]["loss"] == pytest.approx(min(losses))
    before = saved(run)
    train.main(["text", "--resume", "--out", str(run)])
    same(saved(run), before)
    assert "ended early" in capsys.readouterr().out
