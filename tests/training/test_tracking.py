"""Experiment trackers receive what is logged, and cannot end a training."""

import json
import struct
import sys
from types import SimpleNamespace

from mlx_rtx import UserError, train
from mlx_rtx.training.tracking import make_tracker

import pytest
from tensorboardX.proto.event_pb2 import Event

from tiny import FLAGS, complaint, events

SHORT = [*FLAGS, "--samples=224"]


class Wandb(SimpleNamespace):
    """A fake module; trackio has the same interface as wandb."""

    def __init__(self, fails_at=None):
        super().__init__(begun=[], told=[], ended=0, fails_at=fails_at)

    def init(self, **settings):
        if self.fails_at == "init":
            raise RuntimeError("no\nlogin")
        self.begun.append(settings)

    def log(self, values, step):
        if self.fails_at == step:
            raise RuntimeError("no network")
        self.told.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_receive_the_log(name, tmp_path, monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, name, module)
    train.main([*SHORT, "--out", str(tmp_path / "run"), "--tracker", name])
    (begun,) = module.begun
    assert (begun["project"], begun["name"]) == ("mlx_rtx", "run")
    assert json.dumps(begun["config"]["settings"])
    assert module.ended == 1
    for kind in ("train", "validation", "final"):
        expected = [(event["step"], event["loss"]) for event in events(tmp_path / "run", kind)]
        assert expected
        assert [(step, v[f"{kind}/loss"]) for step, v in module.told if f"{kind}/loss" in v] == expected
    assert all(isinstance(value, int | float) for _, values in module.told for value in values.values())
    assert "train/alpha/0" in module.told[0][1]


def test_no_tracker_by_default(tmp_path, monkeypatch):
    for name in ("wandb", "trackio", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    train.main([*SHORT, "--samples=32", "--out", str(tmp_path / "run")])
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == []


def test_a_failing_tracker_is_dropped(tmp_path, monkeypatch, capsys):
    module = Wandb(fails_at=7)
    monkeypatch.setitem(sys.modules, "wandb", module)
    train.main([*SHORT, "--out", str(tmp_path / "run"), "--tracker=wandb"])
    output = capsys.readouterr().out
    assert output.count("warning: the tracker failed (RuntimeError: no network)") == 1
    assert events(tmp_path / "run", "final")
    assert max(step for step, _ in module.told) < 7


def test_a_tracker_that_cannot_start_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(fails_at="init"))
    with pytest.raises(UserError, match=r"--tracker wandb: cannot start \(RuntimeError: no login\)"):
        make_tracker("wandb", tmp_path, {})
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"--tracker trackio: needs a package \(pip install 'mlx-rtx\[trackio\]'\)"):
        make_tracker("trackio", tmp_path, {})
    monkeypatch.chdir(tmp_path)
    assert "--tracker mlflow: must be one of" in complaint(["copy", "--tracker=mlflow"], capsys, monkeypatch)


def records(file):
    """Return the events of a TensorBoard file, stored as length, checksum, event, checksum."""
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_files_are_in_the_run_folder_and_a_resumed_run_adds_one(tmp_path):
    run = tmp_path / "run"
    train.main([*SHORT, "--samples=112", "--out", str(run), "--tracker=tensorboard"])
    train.main(["copy", "--out", str(run), "--resume", "--samples=224"])
    files = sorted((run / "tensorboard").iterdir())
    found = [(event.step, value.simple_value) for file in files for event in records(file)
             for value in event.summary.value if value.tag == "validation/loss"]  # fmt: skip
    expected = [(event["step"], pytest.approx(event["loss"], rel=1e-6)) for event in events(run, "validation")]
    assert sorted(found) == expected
