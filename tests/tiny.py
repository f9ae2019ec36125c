"""Tiny models, tokens and runs for all tests."""

import json
import os
import signal
import sys
from dataclasses import replace

from mlx_rtx import ModelConfig, RecurrentTransformer, UserError, train
from mlx_rtx.model.config import Architecture
from mlx_rtx.support.command import run_command
from mlx_rtx.tasks import CopyTask, TextTask
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.curriculum import CurriculumConfig, ProgressConfig
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.settings import LoopConfig, RunConfig
from mlx_rtx.training.stored_settings import to_stored
from mlx_rtx.training.trainer import Trainer

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

K = 4
LENGTHS = [1, K - 1, K, K + 1, 2 * K, 2 * K + 1, 3 * K - 5, 5 * K - 1, 6 * K]
HISTORIES = ["hidden", "output"]


def make_config(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 7, "max_len": 40, "dim": 8, "heads": 2, "block": K, **changes})


def make_model(kind=RecurrentTransformer, seed=0, implementation="auto", **changes):
    """Return a model with weights large enough that every part of it has an effect."""
    mx.random.seed(seed)
    model = kind(make_config(**changes), implementation)
    alphas = [mx.array(layer.alpha) for layer in model.layers if "alpha" in layer]
    model.update(tree_map(lambda w: w + 0.3 * mx.random.normal(w.shape), model.parameters()))
    for layer, alpha in zip(model.layers, alphas, strict=False):
        layer.alpha = alpha + 0.1 * mx.random.normal(alpha.shape) if alpha.ndim else alpha
    model.eval()
    return model


def make_tokens(length: int, batch: int = 2, seed: int = 1) -> mx.array:
    return mx.random.randint(0, 7, (batch, length), key=mx.random.key(seed))


TINY = RunConfig(
    task=CopyTask(noise=12, payload=2, alphabet=5),
    architecture=Architecture(dim=16, heads=2, block=4, dropout=0.1, history="output", positions="block"),
    progress=CurriculumConfig(  # stages pass within 40 steps
        start_noise=3, advance_below=0.95, lr_rule="paper", stop_loss=0, test_samples=32
    ),
    optimizer=OptimizerConfig(lr=1e-2),
    training=LoopConfig(samples=16 * 40, batch=16, segment=2, validate_every=7, validate_samples=32),
)
FLAGS = [  # `TINY` as flags
    "copy", "--noise=12", "--payload=2", "--alphabet=5", "--dim=16", "--heads=2", "--block=4", "--dropout=0.1",
    "--history=output", "--start-noise=3", "--advance-below=0.95", "--lr-rule=paper", "--optimizer=adam", "--lr=1e-2",
    "--samples=640", "--batch=16", "--segment=2", "--stop-loss=0", "--validate-every=7", "--validate-samples=32",
    "--test-samples=32", "--average=0", "--train-alpha",
]  # fmt: skip


def make_trainer(path, config=TINY, resume=False):
    folder, data = RunFolder(path), config.task.load()
    if not folder.config.exists():
        folder.begin(to_stored("text" if data.vocabulary else "copy", config, data), data.vocabulary)
    return Trainer(config, data, folder, resume)


def saved(path):
    arrays, metadata = mx.load(str(path / "training.safetensors"), return_metadata=True)
    return {name: np.array(array) for name, array in arrays.items()}, json.loads(metadata["counters"])


def events(path, kind):
    return [line for line in read_lines(path / "metrics.jsonl") if line["kind"] == kind]


def text_run(path, **changes):
    """Return the settings of a run on a small repetitive text."""
    (path / "text.txt").write_text("".join(f"{i % 10} times {i % 7} is {i % 10 * (i % 7)}.\n" for i in range(300)))
    return replace(
        TINY,
        task=TextTask(**{"data": str(path / "text.txt"), "length": 16, "sample": 12, **changes}),
        progress=ProgressConfig(),
        training=replace(TINY.training, validate_samples=None),
    )


def complaint(arguments, capsys, monkeypatch, main=train.main):
    """Run a command that must fail; return its one-line error."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def complains(call, *arguments, words="."):
    """Make a call that must raise UserError; return its one-line message."""
    with pytest.raises(UserError, match=words) as error:
        mx.eval(call(*arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def same(first, second):
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    for name, array in first[0].items():
        assert np.array_equal(array, second[0][name]), name


def fit_until(trainer, stop):
    """Train until an interrupt (SIGINT) at step ``stop``."""
    step = trainer._take_step

    def interrupted():
        step()
        if trainer.step == stop:
            os.kill(os.getpid(), signal.SIGINT)

    trainer._take_step = interrupted
    assert trainer.fit() is None
    trainer.log.close()


def check_resuming(path, config, stop):
    """Assert that a run stopped at a step and resumed equals an uninterrupted one; return its final counters."""
    make_trainer(path / "whole", config).fit()
    fit_until(make_trainer(path / "parts", config), stop)
    make_trainer(path / "parts", config, resume=True).fit()
    same(saved(path / "parts"), saved(path / "whole"))
    return saved(path / "whole")[1]
