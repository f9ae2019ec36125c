"""Resuming runs: exactly as if they had never stopped, and without loss of data in the run folder."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

from mlx_rtx import UserError, evaluate, plot, train
from mlx_rtx.plots.run_history import read_history
from mlx_rtx.support import backend
from mlx_rtx.tasks.sources import absolute
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import RunLog, read_lines
from mlx_rtx.training.optimizer import OptimizerConfig

import mlx.core as mx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiny import FLAGS, TINY, complaint, events, fit_until, make_model, make_trainer, same, saved, text_run

TIMES = ("samples_per_s", "tokens_per_s", "peak_gb")  # fields of a report that depend on the machine
SHORT = [*FLAGS, "--samples=160"]


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def logged(path):
    """Return a log without what depends on the machine or on stops."""
    lines = [line for line in read_lines(path / "metrics.jsonl") if line["kind"] != "resume"]
    return [json.dumps({name: value for name, value in line.items() if name not in TIMES}) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short finished run."""
    path = tmp_path_factory.mktemp("finished") / "run"
    train.main([*SHORT, "--out", str(path)])
    return path


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of the run, to be damaged."""
    path = tmp_path / "run"
    path.mkdir()
    for name, content in contents(finished).items():
        (path / name).write_bytes(content)
    return path


class BadGradients:
    """Make gradients of certain steps not finite or far too large, in every trainer."""

    def __init__(self, monkeypatch, bad, factor):
        self.bad, self.factor, self.trainer = bad, factor, None
        embedding = type(make_model().embedding)
        real = embedding.readout

        def readout(this, *rest):
            trouble = this is self.trainer.model.embedding and this.training and self.trainer.step in self.bad
            return real(this, *rest) * (self.factor if trouble else 1)

        monkeypatch.setattr(embedding, "readout", readout)

    def make(self, *arguments, **settings):
        self.trainer = make_trainer(*arguments, **settings)
        return self.trainer


@pytest.fixture(scope="module")
def skipping_runs(tmp_path_factory):
    """Return uninterrupted runs with skipped steps: by kind the steps, the settings and the folder."""
    found = {}
    for name, factor, optimizer in (
        ("not finite", mx.nan, OptimizerConfig(lr=1e-2, average=0.9)),
        ("too large", 1e3, OptimizerConfig(lr=1e-2, skip_above=2.0)),
    ):
        config = replace(TINY, optimizer=optimizer, training=replace(TINY.training, report_every=3))
        path = tmp_path_factory.mktemp("skips") / "whole"
        with pytest.MonkeyPatch.context() as patch:
            BadGradients(patch, range(11, 26), factor).make(path, config).fit()
        found[name] = (factor, config, path)
    return found


@pytest.mark.parametrize("trouble", ["not finite", "too large"])
@settings(max_examples=2)
@example(stop=17)
@given(stop=st.integers(1, 39))
def test_a_run_stopped_amid_skipped_steps_equals_the_uninterrupted_run(trouble, stop, skipping_runs, tmp_path_factory):
    """Regression test: a stop lost the counts of skipped steps, losses and signs, so that a collapse was missed."""
    factor, config, whole = skipping_runs[trouble]
    path = tmp_path_factory.mktemp("parts") / "run"
    with pytest.MonkeyPatch.context() as patch:
        trainers = BadGradients(patch, range(11, 26), factor)
        fit_until(trainers.make(path, config), stop)
        trainers.make(path, config, resume=True).fit()
    same(saved(path), saved(whole))
    assert logged(path) == logged(whole)
    assert events(whole, "skipped")
    assert trouble == "too large" or events(whole, "collapse")


def test_a_sign_of_failure_outlasts_a_stop(tmp_path):
    """Validations before a stop count towards its duration."""
    config = replace(
        TINY,
        optimizer=OptimizerConfig(lr=1e-9),
        training=replace(TINY.training, validate_every=1, samples=16 * 9),
    )

    def hopeless(path, **settings):
        trainer = make_trainer(path, config, **settings)
        trainer._signs.patience = 6
        return trainer

    hopeless(tmp_path / "whole").fit()
    fit_until(hopeless(tmp_path / "parts"), 4)
    hopeless(tmp_path / "parts", resume=True).fit()
    assert [event["step"] for event in events(tmp_path / "parts", "sign")] == [6]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize("missing", [["training.safetensors"], ["training.safetensors", "model.safetensors"]])
def test_a_resume_without_its_checkpoint_changes_nothing(missing, run, capsys, monkeypatch):
    """Regression test: it restarted the run, emptied its log and overwrote its best weights."""
    for name in missing:
        (run / name).unlink()
    before = contents(run)
    output = complaint(["copy", "--resume", "--out", str(run), "--samples=320"], capsys, monkeypatch)
    assert "training.safetensors: not found" in output
    assert contents(run) == before


def test_a_resume_without_the_best_weights_changes_nothing(run, capsys, monkeypatch):
    (run / "model.safetensors").unlink()
    before = contents(run)
    for main, arguments in ((train.main, ["copy", "--resume", "--out"]), (evaluate.main, [])):
        output = complaint([*arguments, str(run)], capsys, monkeypatch, main)
        assert "model.safetensors: not found, though this run chose weights" in output
    assert contents(run) == before


def test_a_run_that_wrote_no_output_can_start_again(run):
    for name in ("training.safetensors", "model.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    train.main(["copy", "--resume", "--out", str(run)])
    assert saved(run)[1]["step"] == 10


def test_a_run_killed_before_its_first_validation_can_be_resumed(tmp_path):
    """Its log has lines, and its checkpoint is that of step 0."""
    trainer = make_trainer(tmp_path / "run")
    trainer._validate = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert [event["step"] for event in events(tmp_path / "run", "train")] == [5]
    train.main(["copy", "--resume", "--out", str(tmp_path / "run"), "--samples=160"])
    assert [event["step"] for event in events(tmp_path / "run", "train")] == [5, 7, 10]


@pytest.mark.parametrize("left", ["metrics.jsonl", "model.safetensors", "training.safetensors"])
def test_a_new_run_overwrites_no_files_of_another(left, run, capsys, monkeypatch):
    for name in contents(run).keys() - {left}:
        (run / name).unlink()
    before = contents(run)
    assert f"holds {left} of a run without config.json" in complaint([*SHORT, "--out", str(run)], capsys, monkeypatch)
    assert contents(run) == before


def test_a_damaged_line_does_not_affect_others(run, capsys):
    """Regression test: all lines after a bad byte were deleted by a resume, and missing in plots."""
    log, (_, before) = run / "metrics.jsonl", (read_history(run), read_lines(run / "metrics.jsonl"))
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step"', b'"st\xffp"')
    log.write_bytes(b"".join(lines))
    capsys.readouterr()
    assert read_lines(log) == [before[0], *before[2:]]
    assert capsys.readouterr().err == f"note: {log}: line 2 is damaged and skipped\n"
    train.main(["copy", "--resume", "--out", str(run), "--samples=240"])
    assert log.read_bytes().startswith(b"".join(lines))
    assert "line 2 is damaged" in capsys.readouterr().err
    plot.main([str(run)])
    assert read_history(run).samples[-1] == 240


def test_a_log_only_grows(tmp_path):
    """A run resumed from before the end of its log repeats steps; readers skip the earlier lines."""
    make_trainer(tmp_path / "whole").fit()
    trainer, log = make_trainer(tmp_path / "parts"), tmp_path / "parts" / "metrics.jsonl"
    fit_until(trainer, 16)
    kept = contents(tmp_path / "parts")["training.safetensors"]
    make_trainer(tmp_path / "parts", resume=True).fit()
    before = log.read_bytes()
    (tmp_path / "parts" / "training.safetensors").write_bytes(kept)
    log.write_bytes(before[:-100])  # a crash in the middle of a line
    make_trainer(tmp_path / "parts", resume=True).fit()
    assert log.read_bytes().startswith(before[:-100] + b"\n")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    same(saved(tmp_path / "parts"), saved(tmp_path / "whole"))


def test_a_line_is_superseded_by_a_later_line_of_an_earlier_step(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl", 10)
    for step in (1, 5, 9, 4, 6):
        log.note("sign", step=step)
    assert [line["step"] for line in read_lines(log.path)] == [1, 4, 6]


def test_a_finished_run_is_not_scored_again(run, capsys, monkeypatch):
    """Regression test: each resume added a final score to the log."""
    before = contents(run)
    monkeypatch.setattr(train.Trainer, "fit", None)
    train.main(["copy", "--resume", "--out", str(run)])
    assert capsys.readouterr().out.startswith("samples used up; the best weights are in ")
    assert contents(run) == before


def test_a_run_that_ended_before_its_final_scores_gets_them(run):
    log = run / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert not events(run, "final")
    train.main(["copy", "--resume", "--out", str(run)])
    assert [event["step"] for event in events(run, "final")] == [10]


def test_the_first_environment_is_kept_and_that_of_each_resume_is_logged(run, monkeypatch):
    """Regression test: resuming on another machine overwrote the first environment."""
    began = json.loads((run / "config.json").read_text())["environment"]
    monkeypatch.setattr(backend, "environment", lambda: {"device_name": "another", "git_revision": None})
    train.main(["copy", "--resume", "--out", str(run), "--samples=320"])
    assert json.loads((run / "config.json").read_text())["environment"] == began
    (resumed,) = events(run, "resume")
    assert (resumed["step"], resumed["environment"]["device_name"]) == (10, "another")


def test_relative_paths_of_data_are_stored_as_absolute_ones(tmp_path, monkeypatch):
    """Regression test: the run could not be resumed from another folder."""
    text_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    small = ["text", "--dim=16", "--heads=2", "--block=4", "--length=16", "--batch=16", "--sample=0"]
    (tmp_path / "held.txt").write_text((tmp_path / "text.txt").read_text()[:500])
    train.main([*small, "--data=te?t.txt", "--validation=held.txt", "--samples=32", "--out=run"])
    train.main(["text", "--resume", "--out=run", "--validation=held.txt", "--samples=48"])
    monkeypatch.chdir(tmp_path.parent)
    run = str(tmp_path / "run")
    train.main(["text", "--resume", "--out", run, "--samples=64"])
    evaluate.main([run, "--samples=2"])
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["task"]
    assert (kept["data"], kept["validation"]) == (str(tmp_path / "te?t.txt"), str(tmp_path / "held.txt"))


def test_names_that_are_not_paths_are_not_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for named, kept in (
        ("hf:someone/stories", "hf:someone/stories"),
        ("hf:mine:small", f"hf:{tmp_path / 'mine'}:small"),
        ("mine", str(tmp_path / "mine")),
        ("someone/model", "someone/model"),
    ):
        assert absolute(named) == kept


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys, monkeypatch):
    """Regression test: their lines were mixed. A lock file left by a killed process does not lock."""
    command = [sys.executable, "-u", "-m", "mlx_rtx.train", *FLAGS, "--samples=1600000", "--report-every=1"]
    with subprocess.Popen([*command, "--out", tmp_path / "run"], stdout=subprocess.PIPE, text=True) as first:
        next(line for line in first.stdout if line.startswith("step=2 "))
        for words in (["copy", "--resume"], FLAGS):
            output = complaint([*words, "--out", str(tmp_path / "run")], capsys, monkeypatch)
            assert f"--out {tmp_path / 'run'}: another process is using it; wait until it ends" in output
        first.kill()
    assert first.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").exists()
    (tmp_path / "run" / ".model.123.tmp.safetensors").write_text("left over")
    train.main(["copy", "--resume", "--out", str(tmp_path / "run"), "--samples=32"])
    assert not [file for file in os.listdir(tmp_path / "run") if file.startswith(".")]


def test_unchanged_settings_do_not_rewrite_the_configuration(run):
    before = (run / "config.json").read_bytes()
    fit_until(make_trainer(run, replace(TINY, training=replace(TINY.training, samples=16 * 20)), resume=True), 12)
    train.main(["copy", "--resume", "--out", str(run)])
    assert (run / "config.json").read_bytes() == before


def test_a_folder_that_cannot_be_locked_is_reported(tmp_path):
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / ".lock")
    with pytest.raises(UserError, match=r"\.lock: cannot be written"), RunFolder(tmp_path / "run").locked():
        pass
    assert not (tmp_path / "elsewhere").exists()
