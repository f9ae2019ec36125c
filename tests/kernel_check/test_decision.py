"""Kernels are used if the check found them correct and fast; any failure falls back to plain operations."""

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from mlx_rtx import UserError, kernels, train
from mlx_rtx.kernel_check import decision
from mlx_rtx.kernel_check.decision import Decision, decide, describe, settle
from mlx_rtx.kernel_check.verdict import Trial, Verdict, VerdictFile, ask
from mlx_rtx.kernels import FORMS
from mlx_rtx.model.config import Architecture
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import pytest

from damage import change_at
from tiny import FLAGS

SHAPE = Architecture(dim=8, heads=2, block=4, history="output")
BATCH = 2
NARROW, SMALL, MATRICES, WIDE = FORMS


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A separate cache, no waiting, and no form left over from another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decision, "PAUSE", 0)
    yield
    kernels.choose(None)


@pytest.fixture
def file():
    return VerdictFile.named(ask(SHAPE, BATCH).key)


def settle_by(file, *behaviours, limit=60):
    """Return the verdict if the forms behave as given; one behaviour applies to all forms."""
    behaviours = behaviours * len(FORMS) if len(behaviours) == 1 else behaviours
    script = Path(__file__).parent.parent / "kernel_stand_ins.py"
    return settle(file, ask(SHAPE, BATCH), limit, (sys.executable, str(script), ",".join(behaviours)))


def forbidden(*arguments):
    raise AssertionError("nothing is to be tried")


def test_the_fastest_correct_form_is_used(file):
    verdict = settle_by(file, "broken", "slow", "slow", "right")
    assert verdict.complete
    assert verdict.form == WIDE
    assert {trial.form for trial in verdict.correct} == {SMALL, MATRICES, WIDE}
    assert all(trial.error < 1e-5 for trial in verdict.correct)
    assert 1 in verdict.plain
    assert verdict.ratio <= 0.9
    assert describe(verdict).startswith(f"wide: {verdict.ratio:.2f} of the time of plain operations")
    assert "narrow with large tiles [metal::Device] Unable to build" in describe(verdict)
    assert file.read() == verdict
    assert settle(file, verdict.question, worker=["no such program"]) == verdict  # the worker is not started again


def test_no_incorrect_form_is_used(file):
    verdict = settle_by(file, "wrong", "unsteady", "unwritten", "wrong")
    assert verdict.complete
    assert verdict.form is None
    failures = {trial.form: trial.failure for trial in verdict.trials}
    assert failures[NARROW].startswith("deviates from plain operations by 0.0")
    assert failures[SMALL] == "gives other numbers when it is repeated"
    assert failures[MATRICES] == "deviates from plain operations by nan"
    assert describe(verdict).startswith("plain operations: no kernel is correct here")


def test_correct_but_slow_forms_are_timed_again_and_not_used(file):
    question = ask(SHAPE, BATCH)
    file.write(Verdict(question, trials=(Trial(NARROW, 1e-6),), untimed="the Mac saves power"))
    assert not file.read().complete
    assert "the Mac saves power" in describe(file.read())
    verdict = settle_by(file, "slow", *["crashing"] * 3)  # not known to be correct, so they are not timed
    assert verdict.complete
    assert verdict.form is None
    assert verdict.ratio > 0.9
    assert verdict.trials[0].error == 1e-6
    assert describe(verdict).startswith("plain operations: kernels take")


def test_a_crash_is_never_repeated(file, monkeypatch):
    verdict = settle_by(file, "crashing")
    assert verdict.complete
    assert "ended with status -11 (compile narrow" in verdict.failure
    monkeypatch.setattr(decision, "_watch", forbidden)
    assert settle_by(file, "right") == verdict


def test_a_stage_that_crashed_the_machine_counts_as_failure(file, monkeypatch):
    file.write(Verdict(ask(SHAPE, BATCH), stage="run wide"))
    monkeypatch.setattr(decision, "_watch", forbidden)
    verdict = settle_by(file, "right")
    assert verdict.failure.startswith("an earlier check ended unexpectedly (run wide)")
    assert file.read() == verdict


def test_a_hanging_check_is_ended(file):
    verdict = settle_by(file, "hanging", limit=1)
    assert verdict.failure.startswith("a check took longer than 1 s (")


def test_an_interrupted_check_leaves_nothing(file, monkeypatch):
    waiting = threading.Thread(target=_interrupt_once, args=(file,))
    waiting.start()
    with pytest.raises(KeyboardInterrupt):
        settle_by(file, "hanging")
    waiting.join()
    assert file.read() == Verdict(ask(SHAPE, BATCH))


def _interrupt_once(file):
    while not (found := file.read()) or not (found.stage or "").startswith("compile"):
        threading.Event().wait(0.05)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("took",), "x"), (("form",), [True, "no such tiles", None]), (("form",), 3), (("plain",), {}),
        (("plain",), {"1": 0.0}), (("plain",), {"3": 1.0}), (("trials",), [{"form": [True]}]), (("failure",), 5),
        (("question",), {}), (("question", "batch"), "2"), (("stage",), ["start"]),
    ],
)  # fmt: skip
def test_a_verdict_with_invalid_values_is_ignored(file, place, wrong):
    """It is treated as missing. Describing it once raised an exception, and an unknown form was chosen."""
    right = Verdict(ask(SHAPE, BATCH), trials=(Trial(NARROW, 1e-6, None, {1: 0.5}),), plain={1: 1.0}, form=NARROW)
    file.write(right)
    assert file.read() == right
    file.path.write_text(json.dumps(change_at(json.loads(file.path.read_text()), place, wrong)))
    assert file.read() is None


def test_only_one_process_checks_at_a_time(file):
    with file.lock() as lock:
        assert lock is not None
        assert settle_by(file, "right") is None
    assert file.read() is None


@pytest.fixture
def on_metal(monkeypatch):
    """Pretend that there is a Metal GPU; return the verdict that a check would find."""
    found = Verdict(replace(ask(SHAPE, BATCH), chip="Apple M4"), trials=(Trial(WIDE),), plain={1: 1.0}, form=WIDE)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(decision, "ask", lambda *_: found.question)
    monkeypatch.setattr(decision, "settle", lambda file, question: file.write(found))
    monkeypatch.delenv("MLX_RTX_KERNELS", raising=False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    return replace(found, trials=(replace(found.trials[0], seconds={1: 0.5}),))


def test_the_verdict_is_found_once_and_cached(on_metal, monkeypatch):
    monkeypatch.setattr(decision, "settle", lambda file, question: file.write(on_metal))
    output = []
    made = decide("recurrent", SHAPE, BATCH, None, output.append)
    assert made.form == WIDE
    assert len(output) == 1
    monkeypatch.setattr(decision, "settle", forbidden)
    assert decide("recurrent", SHAPE, BATCH, None, output.append) == made
    assert len(output) == 1


def test_a_run_resumes_with_its_kernels(on_metal, monkeypatch):
    monkeypatch.setattr(decision, "settle", forbidden)
    for form in (SMALL, None):
        began = {"key": on_metal.question.key, "form": form and list(form)}
        assert decide("recurrent", SHAPE, BATCH, began, forbidden).form == form


def test_a_run_does_not_resume_with_kernels_that_failed(on_metal):
    file = VerdictFile.named(on_metal.question.key)
    file.write(on_metal)
    made = decide("recurrent", SHAPE, BATCH, None, forbidden)
    with made.at_work():
        assert kernels.form(8) == WIDE
    with pytest.raises(UserError, match="MLX_RTX_KERNELS=0"), made.at_work():
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")
    again = decide("recurrent", SHAPE, BATCH, {"key": made.key, "form": list(WIDE)}, forbidden)
    assert again.form is None
    assert "Caused GPU Hang Error" in again.text


@pytest.mark.parametrize(
    "message", ["no bug of the GPU", "[METAL] Command buffer execution failed: Insufficient Memory"]
)
def test_other_errors_are_not_blamed_on_kernels(on_metal, message):
    file = VerdictFile.named(on_metal.question.key)
    file.write(on_metal)
    with (
        pytest.raises(RuntimeError, match=message[:10].replace("[", r"\[")),
        Decision(WIDE, on_metal.question.key).at_work(),
    ):
        raise RuntimeError(message)
    assert file.read() == on_metal


@pytest.mark.parametrize(("model", "changes", "asked"), [
    ("regular", {}, None), ("recurrent", {}, "0"), ("recurrent", {}, "1"), ("recurrent", {"dtype": "bfloat16"}, None),
    ("recurrent", {"dim": 4}, None), ("recurrent", {"alpha_kind": "gated"}, None),
])  # fmt: skip
def test_nothing_is_checked_if_kernels_are_not_an_option(on_metal, monkeypatch, model, changes, asked):
    if asked:
        monkeypatch.setenv("MLX_RTX_KERNELS", asked)
    monkeypatch.setattr(decision, "settle", forbidden)
    assert decide(model, replace(SHAPE, **changes), BATCH, None, forbidden) == Decision()


def test_a_virtual_gpu_is_not_checked(on_metal, monkeypatch):
    virtual = replace(on_metal.question, chip="Apple Paravirtual device")
    monkeypatch.setattr(decision, "ask", lambda *_: virtual)
    monkeypatch.setattr(decision, "settle", forbidden)
    made = decide("recurrent", SHAPE, BATCH, None, forbidden)
    assert made.form is None
    assert "virtual" in made.text


def test_a_training_records_its_decision_and_handles_a_failing_gpu(on_metal, tmp_path, capsys, monkeypatch):
    """It runs with plain operations, because this is a CPU; only the recorded form is tested."""
    monkeypatch.setattr(kernels, "available", lambda: False)
    file, out = VerdictFile.named(on_metal.question.key), tmp_path / "run"
    file.write(on_metal)
    step, fails = TrainingStep.take, [False, True]

    def failing(*arguments, **settings):
        if fails.pop(0):
            raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")
        return step(*arguments, **settings)

    monkeypatch.setattr(TrainingStep, "take", failing)
    command = [*FLAGS, "--samples=32", "--validate-every=1", f"--out={out}"]
    with pytest.raises(UserError, match="--resume"):
        train.main(command)
    assert "kernels: wide: 0.50 of the time of plain operations" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["kernels"] == {"key": file.path.stem, "form": list(WIDE)}
    fails[:] = [False, False]
    train.main([FLAGS[0], f"--out={out}", "--resume"])
    printed = capsys.readouterr().out
    assert "kernels: plain operations: a training failed" in printed
    assert "resumed at step 1" in printed
    assert json.loads((out / "config.json").read_text())["kernels"]["form"] is None
