"""Run folders: files are read back as written, and damaged files are reported."""

import os
from dataclasses import asdict

from mlx_rtx import UserError, load
from mlx_rtx.model.segment import Carry
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.counters import Counters
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tiny import K, make_model, make_tokens


@pytest.fixture
def folder(tmp_path):
    folder, model = RunFolder(tmp_path / "run"), make_model(history="output", state_norm=True)
    folder.begin({"model": {"kind": "recurrent", **asdict(model.config)}})
    folder.write_model(model)
    return folder


def test_load_gives_the_model_back(folder):
    model, config = load(folder.path)
    expected = make_model(history="output", state_norm=True)
    assert config == expected.config
    assert not model.training
    assert mx.array_equal(model(make_tokens(9)), expected(make_tokens(9)))


def test_training_state_is_restored_bit_exactly(folder):
    model = make_model(history="output", state_norm=True)
    optimizer = make_optimizer(OptimizerConfig(), model)
    apply_gradients(model, optimizer, model.trainable_parameters(), OptimizerConfig())
    counters = Counters(step=7, finished=False, progress={"lr": 0.1 + 0.2}, tally={"skipped": 3})
    carry = (Carry(mx.ones((2, K, 8)), mx.zeros((2, K, 8))),)
    folder.write_training(model, optimizer.state, counters, carry)
    other = make_model(seed=5, history="output", state_norm=True)
    state, left, found = folder.read_training(other, make_optimizer(OptimizerConfig(), other).state, rows=2)
    assert mx.array_equal(left[0].m, carry[0].m)
    assert found == counters
    before = dict(tree_flatten([model.parameters(), optimizer.state]))
    after = dict(tree_flatten([other.parameters(), state]))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype, name
        assert mx.array_equal(array, after[name]), name


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        load(tmp_path / "nothing")


def test_a_foreign_folder(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="format=None"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_ty')
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file(folder, share):
    whole = folder.model.read_bytes()
    folder.model.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        load(folder.path)


def test_a_missing_file(folder):
    folder.model.unlink()
    with pytest.raises(UserError, match="not found"):
        load(folder.path)


def test_a_file_of_another_program(folder):
    mx.save_safetensors(str(folder.model), {"weight": mx.zeros(3)})
    with pytest.raises(UserError, match="not written by this mlx_rtx"):
        load(folder.path)


def test_weights_of_another_model(folder):
    folder.write_model(make_model(dim=16))
    with pytest.raises(UserError, match=r"has shape .* the configuration says"):
        load(folder.path)


def test_a_configuration_with_unknown_keys(folder):
    config = folder.read_config()
    config["model"]["experts"] = 8
    folder.write_config(config)
    with pytest.raises(UserError, match="experts"):
        load(folder.path)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("[write] Unable to write")])
def test_a_full_disk_leaves_the_last_checkpoint_intact(folder, monkeypatch, failure):
    before = folder.model.read_bytes()

    def full(descriptor):
        raise failure

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written.*free some space"):
        folder.write_model(make_model(seed=3))
    assert folder.model.read_bytes() == before
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "model.safetensors"]
