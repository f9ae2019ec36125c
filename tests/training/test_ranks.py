"""Two ranks train like one process, up to rounding error, and end together."""

import os
import signal
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.joining import rank_folder, rank_settings
from mlx_rtx.training.ranks import Ranks

import numpy as np
import pytest

import two_ranks
from tiny import FLAGS, TINY, complains, complaint, events, saved

KINDS = [
    "copy", "dropout", "selective", "text", "mixture", "stateful", "poisoned", "one, then two", "two, then one",
    "image",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder in which two ranks and a single process have trained the same runs."""
    path = tmp_path_factory.mktemp("ranks")
    two_ranks.make_data(path)
    assert list(two_ranks.runs(path)) == KINDS
    for name, config in two_ranks.runs(path).items():
        if name == "dropout":  # a part of a step has the same masks on any rank
            training = config.training
            halves = {"batch": training.batch // 2, "accumulate": 2 * training.accumulate}
            config = replace(config, training=replace(training, **halves))
        fit(name, config, path / "one" / name)
    first = two_ranks.runs(path)["one, then two"]
    fit("", first, path / "two" / "one, then two", stop=True)
    ended = two_ranks.finish(two_ranks.start([two_ranks.__file__, path], path))
    assert [(code, err) for code, _, err in ended] == [(0, "")] * 2
    assert ended[1][1] == "", "the second rank speaks"
    fit("", first, path / "two" / "two, then one")
    return path


def fit(name, config, path, stop=False):
    trainer = two_ranks.make_trainer(name, config, RunFolder(path), stop=stop)
    assert (trainer.fit() is None) == stop
    trainer.log.close()


@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_train_like_one_process(trained, name):
    """All weights, moments, averages and carries agree, also if another number of ranks resumes."""
    (one, counted), (two, other) = saved(trained / "one" / name), saved(trained / "two" / name)
    assert one.keys() == two.keys()
    for key, array in one.items():
        assert np.allclose(array, two[key], rtol=2e-3, atol=3e-4), key
    assert other["step"] == counted["step"] == two_ranks.STEPS
    if name != "dropout":  # its validation uses other batches
        first, second = (events(trained / of / name, "final")[-1] for of in ("one", "two"))
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
        assert second["sequences"] == first["sequences"]


def command(*words):
    """Start two ranks of the command, as on two machines: only the first one has the run folder."""
    here, there = Path("here"), Path("there")
    for folder in (here, there):
        folder.mkdir(exist_ok=True)
    return two_ranks.start(["-m", "mlx_rtx.train", *FLAGS, "--out=run", *words], Path.cwd(), cwd=[here, there])


@pytest.mark.parametrize("lost", [0, 1])
def test_all_ranks_end_if_one_is_killed_and_the_run_can_be_resumed(lost, tmp_path, monkeypatch):
    """One process reports it in one line; two processes resume the run, one of which has no files."""
    monkeypatch.chdir(tmp_path)
    Path("temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    processes = command("--samples=1000000", "--report-every=1")
    for line in processes[0].stdout:
        if line.startswith("step=9"):
            processes[lost].kill()
            break
    ended = two_ranks.finish(processes)
    code, _, err = ended[1 - lost]
    assert ended[lost][0] == -signal.SIGKILL
    assert code == 2
    assert err.startswith(f"error: rank {lost} was lost")
    assert err.endswith("--out run --resume")
    assert err.count("\n") == 0
    assert list(Path("there").iterdir()) == []
    assert len(list(Path("temporary").iterdir())) == lost, "what was killed alone leaves something"
    if lost == 1:
        return
    step = saved(tmp_path / "here" / "run")[1]["step"]  # of the last validation before the kill
    assert step >= 7
    resumed = two_ranks.finish(command(f"--samples={16 * (step + 3)}", "--resume"))
    for code, _, err in resumed:
        assert (code, err) == (0, "")
    assert f"resumed at step {step}" in resumed[0][1]
    assert saved(tmp_path / "here" / "run")[1]["step"] == step + 3


def test_a_copied_folder_is_removed_although_another_thread_has_begun_to_remove_it(tmp_path, monkeypatch):
    """The thread that ends the process after a lost rank does not leave the folder to the main thread, which may be
    removing it because MLX raised an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    removing, ended, rmdir = threading.Event(), threading.Event(), os.rmdir
    ranks = Ranks()
    ranks.rank, ranks.size, ranks.lifeline = 1, 2, SimpleNamespace(last=None)

    def slowly(*arguments, **others):
        if threading.current_thread() is leaving:
            removing.set()
            ended.wait(10)
        rmdir(*arguments, **others)

    def leave():
        with rank_folder(ranks, tmp_path / "run", resume=False) as folder:
            folder.config.touch()

    monkeypatch.setattr(os, "rmdir", slowly)
    leaving = threading.Thread(target=leave)
    leaving.start()
    assert removing.wait(10)
    ranks.lifeline.last()
    left = list(tmp_path.iterdir())
    ended.set()
    leaving.join()
    assert left == []


def test_an_error_of_one_rank_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here", "one.toml").write_text("alphabet = 5\n")
    (first, *silence), (second, out, err) = two_ranks.finish(command("--config=one.toml"))
    assert (first, second, out, silence) == (2, 2, "", ["", ""])
    assert err.startswith("error: rank 1: --config one.toml")


def test_a_batch_that_cannot_be_divided_is_refused():
    ranks = Ranks()
    ranks.size = 3
    output = complains(rank_settings, ranks, TINY)
    assert output == "--batch 16: must be a multiple of the 3 ranks, for example 18"
    ranks.size = 4
    assert rank_settings(ranks, TINY).training.batch == 4


def test_invalid_environments_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("MLX_RANK", "1")
    for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "mlx.launch" in complaint(FLAGS, capsys, monkeypatch)
    monkeypatch.setenv("MLX_WORLD_SIZE", "2")
    assert "--backend" in complaint(FLAGS, capsys, monkeypatch)
