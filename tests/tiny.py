"""Tiny models, tokens and runs for all tests."""

import sys

from mlx_rtx import ModelConfig, RecurrentTransformer, train
from mlx_rtx.support.parsing import run_command

import mlx.core as mx
import pytest
from mlx.utils import tree_map

K = 4
LENGTHS = [1, K - 1, K, K + 1, 2 * K, 2 * K + 1, 3 * K - 5, 5 * K - 1, 6 * K]
HISTORIES = ["hidden", "output"]


def make_config(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 7, "max_len": 40, "dim": 8, "heads": 2, "block": K, **changes})


def make_model(kind=RecurrentTransformer, seed=0, implementation="auto", **changes):
    """A model whose weights are large enough for every part of it to matter."""
    mx.random.seed(seed)
    model = kind(make_config(**changes), implementation)
    alphas = [mx.array(alpha) for alpha in model.alphas]
    model.update(tree_map(lambda w: w + 0.3 * mx.random.normal(w.shape), model.parameters()))
    for layer, alpha in zip(model.layers, alphas, strict=False):
        layer.alpha = alpha
    model.eval()
    return model


def make_tokens(length: int, batch: int = 2, seed: int = 1) -> mx.array:
    return mx.random.randint(0, 7, (batch, length), key=mx.random.key(seed))


FLAGS = [  # a tiny run of copy from the command line: `TINY` of training/test_trainer.py
    "copy", "--noise=12", "--payload=2", "--alphabet=5", "--dim=16", "--heads=2", "--block=4", "--dropout=0.1",
    "--history=output", "--start-noise=3", "--advance-below=0.95", "--lr-rule=paper", "--lr=1e-2", "--samples=640",
    "--batch=16", "--segment=2", "--stop-loss=0", "--validate-every=7", "--validate-samples=32", "--test-samples=32",
]  # fmt: skip


def complaint(arguments, capsys, monkeypatch, main=train.main):
    """Run the command; its one line of complaint."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err
