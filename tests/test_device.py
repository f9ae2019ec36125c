"""Commands run on the device that the user names, or refuse it in one line."""

from mlx_rtx import UserError, evaluate, generate, train
from mlx_rtx.support import backend

import mlx.core as mx
import pytest

from tiny import complaint

SIZES = ["--length=8", "--block=4", "--dim=8", "--heads=2", "--samples=4", "--batch=2", "--sample=0"]


@pytest.fixture
def devices(monkeypatch):
    """Record the devices that MLX is set to use."""
    told = []
    monkeypatch.setattr(mx, "set_default_device", told.append)
    return told


def test_commands_take_a_device(tmp_path, devices, capsys):
    (tmp_path / "t.txt").write_text("to be or not to be " * 9)
    run = str(tmp_path / "run")
    train.main(["text", "--data", str(tmp_path / "t.txt"), *SIZES, "--out", run, "--device", "cpu"])
    assert devices == [mx.cpu]
    evaluate.main([run, "--device=cpu"])
    generate.main(["--model", run, "--prompt=to", "--max-tokens=2", "--device=cpu"])
    assert devices == [mx.cpu] * 3
    train.main(["text", "--out", run, "--resume", "--samples=8"])  # MLX's default device
    assert devices == [mx.cpu] * 3


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_missing_gpu_is_refused(has_gpu, devices, monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: has_gpu)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    if has_gpu:
        backend.use_device("gpu")
        assert devices == [mx.gpu]
    else:
        with pytest.raises(UserError, match="--device gpu: MLX finds no GPU"):
            backend.use_device("gpu")
        assert devices == []


def test_other_devices_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "--device tpu: must be one of" in complaint(["copy", "--device", "tpu"], capsys, monkeypatch)
