"""Runs stopped anywhere, also during a step or a validation: they end at once, can be used, and can be resumed."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

from mlx_rtx import evaluate, generate, load, train
from mlx_rtx.support.trees import flat
from mlx_rtx.training.curriculum import CurriculumConfig
from mlx_rtx.training.log import RunLog
from mlx_rtx.training.validation import using_weights

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tiny import FLAGS, TINY, events, make_trainer, same, saved, text_run

# each validation is followed by a confirmation, but none ends the run
CONFIRMED = replace(
    TINY,
    progress=CurriculumConfig(start_noise=12, stop_loss=9.0, test_samples=32),
    optimizer=replace(TINY.optimizer, average=0.9),
    training=replace(TINY.training, samples=16 * 14),
)


def trainer_of(path, config, monkeypatch, resume=False):
    """Return a trainer whose validations have every sequence right, and whose confirmations do not."""
    trainer = make_trainer(path, config, resume)
    real = trainer._score

    def score(event, *rest):
        return replace(real(event, *rest), sequence_accuracy=0.5 if event == "confirmation" else 1.0)

    monkeypatch.setattr(trainer, "_score", score)
    return trainer


def places(trainer, interrupt):
    """Call ``interrupt`` with the number, from 0, of each point at which a trainer can be interrupted."""
    real, passed = trainer.execution.poll, 0

    def poll():
        nonlocal passed
        interrupt(passed)
        passed += 1
        real()

    trainer.execution.poll = poll


def run_of(kind, tmp_path):
    return (
        CONFIRMED if kind == "copy" else replace(text_run(tmp_path), training=replace(TINY.training, samples=16 * 14))
    )


@pytest.mark.parametrize("kind", ["copy", "text"])
def test_a_run_interrupted_anywhere_resumes_bit_exactly(kind, tmp_path, monkeypatch):
    """During a step, a validation, its confirmation, a sample of text, or the final scoring."""
    config, all_places = run_of(kind, tmp_path), []
    whole = trainer_of(tmp_path / "whole", config, monkeypatch)
    places(whole, all_places.append)
    whole.fit()
    for at in [*random.sample(all_places, 5), all_places[-1]]:
        trainer = trainer_of(tmp_path / str(at), config, monkeypatch)
        places(trainer, lambda place, at=at: place == at and os.kill(os.getpid(), signal.SIGINT))
        assert trainer.fit() is None
        going_on = trainer_of(tmp_path / str(at), config, monkeypatch, resume=True)
        assert going_on.fit() is not None
        same(saved(tmp_path / str(at)), saved(tmp_path / "whole"))
        for event in ("validation", "confirmation", "sample", "stage", "final"):
            assert events(tmp_path / str(at), event) == events(tmp_path / "whole", event), (at, event)


def test_an_interrupted_validation_is_not_logged_twice(tmp_path):
    """Nor if the process died before it saved the result of the validation."""
    log = RunLog(tmp_path / "metrics.jsonl", 10)
    scores = {"samples": 9, "loss": 1.0, "accuracy": 0.5, "length": 4, "alpha": [], "next_noise": 6}
    for step, kind in ((7, "train"), (7, "validation"), (14, "train"), (14, "validation"), (14, "stage")):
        log.event(kind, kind, step=step, **scores)
    with contextlib.suppress(ZeroDivisionError), log.all_or_none():
        log.event("validation", "not done", step=14)
        1 / 0  # noqa: B018
    assert len(events(tmp_path, "validation")) == 2
    log.note("resume", step=14, validated=False, environment={})
    assert [(event["step"]) for event in events(tmp_path, "train")] == [7, 14]
    assert [(event["step"]) for event in events(tmp_path, "validation")] == [7]
    assert not events(tmp_path, "stage")


def test_skipped_steps_are_remembered_when_a_run_resumes(tmp_path):
    trainer = make_trainer(tmp_path, TINY)
    trainer.model.update(tree_map(lambda w: w * math.nan, trainer.model.parameters()))
    for _ in range(6):
        trainer._take_step()
    trainer.save()
    assert make_trainer(tmp_path, TINY, resume=True)._tally.skipped == 6


@pytest.mark.parametrize("kind", ["copy", "text"])
def test_a_run_stopped_before_its_first_validation_can_be_used(kind, tmp_path, capsys):
    trainer = make_trainer(tmp_path / "run", run_of(kind, tmp_path))
    places(trainer, lambda place: trainer.step == 3 and os.kill(os.getpid(), signal.SIGTERM))
    assert trainer.fit() is None
    model, _ = load(tmp_path / "run")
    for name, array in flat(model.parameters()).items():
        assert np.array_equal(array, flat(trainer.model.parameters())[name]), name
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run"), "--samples", "2"])
    assert "note: this run was stopped before its first validation" in capsys.readouterr().out
    if kind == "text":
        trainer.data.vocabulary.save(trainer.folder.tokenizer)
        generate.main(["--model", str(tmp_path / "run"), "--prompt", "1", "--max-tokens", "5"])
        printed = capsys.readouterr()
        assert "note: this run was stopped before its first validation" in printed.err
        assert len(printed.out) == 6


def test_other_weights_are_used_temporarily(tmp_path):
    trainer = make_trainer(tmp_path, TINY)
    own = trainer.model.trainable_parameters()
    with contextlib.suppress(ZeroDivisionError), using_weights(trainer.model, tree_map(mx.negative, own)):
        1 / 0  # noqa: B018
    for name, array in flat(trainer.model.trainable_parameters()).items():
        assert array is flat(own)[name]


@pytest.mark.parametrize("output", ["pipe", "/dev/full"])
def test_a_run_whose_output_cannot_be_written_saves_and_ends(output, tmp_path, capsys):
    """A closed pipe, as with head, or a full disk."""
    command = [sys.executable, "-m", "mlx_rtx.train", *FLAGS, "--report-every=1", "--samples=160000", "--out", tmp_path]
    if output == "pipe":
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            next(line for line in run.stdout if line.startswith("step=3 "))
            run.stdout.close()
            assert run.stderr.read() == ""
        assert run.returncode == 128 + signal.SIGPIPE
    else:
        with open(output, "w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (
            run.stderr == "error: reading or writing failed: no space left on device; free some space and run again\n"
        )
        assert run.returncode == 2
    _, counters = saved(tmp_path)
    assert (0 if output == "/dev/full" else 3) <= counters["step"] < 10_000
    train.main(["copy", "--out", str(tmp_path), "--resume", f"--samples={16 * (counters['step'] + 1)}"])
    assert saved(tmp_path)[1]["step"] == counters["step"] + 1
