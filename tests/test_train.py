"""The command line: a user's mistake gives one line and exit code 2, and changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from mlx_rtx import UserError, evaluate, train
from mlx_rtx.support import backend
from mlx_rtx.training.diagnostics import FailureSigns
from mlx_rtx.training.evaluation import Scores
from mlx_rtx.training.log import RunLog, line

import pytest

from tiny import FLAGS, complaint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["copy", "selective-copy"]),
        (["cpy"], ["cpy", "copy"]),
        (["copy", "--nosie", "4096"], ["--nosie", "--noise"]),
        (["copy", "--noise", "many"], ["--noise", "many"]),
        (["copy", "--noise", "0"], ["error: noise=0: must be at least 1"]),
        (["copy", "--noise"], ["--noise"]),
        (["copy", "--heads", "7"], ["heads=7", "dim=96", "use heads"]),
        (["copy", "--history", "both"], ["both", "hidden", "output"]),
        (["copy", "--batch", "0"], ["batch=0"]),
        (["copy", "--recipe", "best"], ["best", "default", "paper"]),
        (["copy", "--seed", "-1"], ["seed=-1"]),
        (["copy", "--config", "missing.toml"], ["missing.toml", "cannot be read"]),
        (["copy", "--resume"], ["runs/copy", "no such run folder"]),
        (["copy", "--out", "file/run"], ["file/run", "cannot create this folder"]),
    ],
    ids=" ".join,
)
def test_wrong_input(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    output = complaint(arguments, capsys, monkeypatch)
    for word in words:
        assert word in output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("noies = 5", ["--noies", "--noise"]), ("noise = ", ["invalid TOML"]), ("[task]\nnoise = 5", ["without tables"])],
)
def test_wrong_config_files(text, words, capsys, monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    output = complaint(
        ["copy", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")], capsys, monkeypatch
    )
    for word in [*words, "c.toml"]:
        assert word in output
    assert not (tmp_path / "run").exists()


def test_flags_override_the_config_file_which_overrides_the_recipe(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('recipe = "paper"\nnoise = 8\nbatch = 3\ntrain_alpha = false\npositions = "none"\n')
    command, task = train.read_command(["selective-copy", "--config", str(path), "--batch", "5"])
    settings = command.settings
    assert task == "selective-copy"
    assert (settings.task.noise, settings.training.batch, settings.architecture.positions) == (8, 5, "none")
    assert not settings.architecture.train_alpha
    assert (settings.optimizer.lr, settings.progress.lr_rule, settings.progress.start_noise) == (5e-4, "paper", 32)


def test_the_papers_recipe_is_the_papers():
    settings = train.read_command(["copy", "--recipe", "paper"])[0].settings
    model = settings.architecture
    assert (model.dim, model.heads, model.block, model.dropout, model.positions) == (96, 6, 32, 0.05, "absolute")
    assert (settings.training.batch, settings.optimizer.lr, settings.optimizer.clip) == (64, 5e-4, 0)


@pytest.mark.parametrize("arguments", [["--help"], ["copy", "--help"]])
def test_help_is_shown(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code in (0, None)
    assert "copy" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a short finished run from the command line, and its output."""
    path = tmp_path_factory.mktemp("runs") / "first"
    command = [sys.executable, "-m", "mlx_rtx.train", *FLAGS, "--samples", "160", "--out", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return path, done.stdout


def test_output_of_a_run(run):
    path, output = run
    for words in (
        "task=copy noise=12",
        "parameters",
        "device:",
        f"run folder: {path}",
        "until:",
        "step=10 samples=160 loss=",
        "final noise=12",
    ):
        assert words in output
    assert f"--out {path} --resume" in output
    assert "\r" not in output  # no progress bar in a pipe
    assert {"versions", "device", "git_revision"} <= json.loads((path / "config.json").read_text())[
        "environment"
    ].keys()


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_folder_with_a_run_is_not_changed(run, capsys, monkeypatch):
    path, before = run[0], contents(run[0])
    assert "already holds a run; add --resume" in complaint([*FLAGS, "--out", str(path)], capsys, monkeypatch)
    output = complaint(["copy", "--out", str(path), "--resume", "--dim", "32"], capsys, monkeypatch)
    assert "--dim 32" in output
    assert "was trained with 16" in output
    output = complaint(["selective-copy", "--out", str(path), "--resume"], capsys, monkeypatch)
    assert "holds a run of copy" in output
    assert contents(path) == before


def test_a_truncated_checkpoint_is_reported(run, capsys, monkeypatch):
    file = run[0] / "training.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    before = contents(run[0])
    output = complaint(["copy", "--out", str(run[0]), "--resume"], capsys, monkeypatch)
    assert "training.safetensors: truncated" in output
    assert contents(run[0]) == before
    file.write_bytes(whole)


def test_resume_needs_no_other_flag(run, capsys):
    train.main(["copy", "--out", str(run[0]), "--resume", "--samples", "320"])
    output = capsys.readouterr().out
    assert "resumed at step 10" in output
    assert "step=20 samples=320" in output


def test_evaluate_scores_any_noise(run, capsys):
    evaluate.main([str(run[0]), "--noise", "100", "--samples", "8", "--batch", "4"])
    output = capsys.readouterr().out
    assert output.startswith("task=copy split=fresh noise=100 length=104\nloss=")
    assert "95 % intervals: loss ± " in output
    assert " of 8 right, " in output
    assert "sequences=8" in output


def test_evaluate_writes_its_scores_as_json(run, tmp_path, capsys):
    flags = ["--noise", "20", "--samples", "8", "--batch", "4"]
    evaluate.main([str(run[0]), *flags, "--json", str(tmp_path / "scores.json")])
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "scores.json").read_text())
    assert (report["task"], report["split"], report["noise"]) == ("copy", "fresh", 20)
    assert {"device_name", "git_revision"} <= report["environment"].keys()
    assert f"model: recurrent, {report['parameters']:,} parameters" in run[1]
    scores = Scores(**report["scores"])
    assert (scores.sequences, scores.targets) == (8, 16)
    assert scores.text(("loss", "accuracy", "sequence_accuracy")) in output
    evaluate.main([str(run[0]), "--noise", "20", "--samples", "1", "--json", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["loss_se"] is None  # of one sequence


def test_scores_are_written_to_special_files_without_replacing_them(run, tmp_path, capsys):
    """To a pipe or /dev/stdout; a folder is refused."""
    os.mkfifo(tmp_path / "pipe")
    flags = [str(run[0]), "--noise", "8", "--samples", "4", "--json"]
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        evaluate.main([*flags, str(tmp_path / "pipe")])
        assert json.loads(reader.communicate()[0])["noise"] == 8
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UserError, match="is a folder; name a file"):
        evaluate.main([*flags, str(tmp_path)])


def test_the_revision_shows_whether_sources_were_modified(tmp_path, monkeypatch):
    file = tmp_path / "mlx_rtx" / "support" / "backend.py"
    file.parent.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    texts = [file, tmp_path / "results" / "summary.json", tmp_path / "README.md"]
    monkeypatch.setattr(backend, "__file__", str(file))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    assert backend.git_revision() is None
    for path in texts:
        path.write_text("before")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for path in texts[1:]:
        path.write_text("after")
    assert backend.git_revision() == head
    file.write_text("after")
    assert backend.git_revision() == head + "+"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing", "PATH"]),
        (["nowhere"], ["nowhere", "no such run folder"]),
        (["RUN", "--noise", "0"], ["noise=0"]),
        (["RUN", "--samples", "0"], ["samples=0"]),
        (["RUN", "--batch", "0"], ["batch=0"]),
        (["RUN", "--seed", "-1"], ["--seed -1"]),
        (["RUN", "--split", "test"], ["--split test", "fresh"]),
        (["RUN", "--data", "x"], ["--data x", "generates its own"]),
    ],
    ids=" ".join,
)
def test_wrong_input_to_evaluate(arguments, words, run, capsys, monkeypatch):
    arguments = [str(run[0]) if argument == "RUN" else argument for argument in arguments]
    output = complaint(arguments, capsys, monkeypatch, evaluate.main)
    for word in words:
        assert word in output


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a device that is always full")
def test_a_full_disk_during_logging_is_reported(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl", 10)
    log.path = Path("/dev/full")
    with pytest.raises(UserError, match="free some space"):
        log.event("sign", "text")


def test_numbers_are_short():
    assert line({"step": 12345, "loss": 0.1234567, "alpha": [0.5, 0.25]}) == "step=12345 loss=0.1235 alpha=0.5,0.25"
    assert line({"step": 1, "alpha": []}) == "step=1"  # of a regular transformer


@pytest.mark.parametrize(
    ("train_loss", "loss", "alphas", "words"),
    [
        (1.0, 1.0, [1.0], "alpha pinned at 1"),
        (1.0, 1.0, [0.0], "alpha pinned at 0"),
        (2.6, 2.6, [0.5], "loss stays at"),
        (0.5, 2.0, [0.5], "validation loss far above training loss"),
    ],
)
def test_lasting_signs_of_failure_give_one_warning(train_loss, loss, alphas, words):
    signs = FailureSigns(chance=2.639, patience=3)
    warnings = [signs.observe(train_loss, loss, alphas) for _ in range(6)]
    assert [len(new) for new in warnings] == [0, 0, 1, 0, 0, 0]
    assert words in warnings[2][0]


def test_a_healthy_run_gives_no_warning():
    signs = FailureSigns(chance=2.639, patience=1)
    assert signs.observe(1.0, 1.1, [0.5]) == []
    assert signs.observe(1.0, 1.1, []) == []
