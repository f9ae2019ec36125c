"""The walk over a traced graph: what it counts, and that it sees all that is computed."""

from mlx_rtx import ModelConfig
from mlx_rtx.forecast.graph import Work, walk
from mlx_rtx.forecast.step_benchmark import Trial
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.trees import arrays

import mlx.core as mx
import mlx.nn as nn
import pytest

from tiny import HISTORIES


def test_a_walk_counts_by_hand():
    """Two products and a sum; a transpose and a broadcast launch nothing and move nothing of their own."""
    a, b, row = mx.zeros((3, 4)), mx.zeros((5, 4)), mx.zeros((5,))
    product, total = 4 * (3 * 4 + 5 * 4 + 3 * 5), 4 * (3 * 5 + 5 + 3 * 5)
    assert walk(lambda a, b, row: a @ b.T + row, a, b, row) == Work(2, 3 * 4 * 5, product + total)


def test_a_walk_sees_what_is_evaluated_on_the_way():
    def function(x):
        y = x * 2
        mx.eval(y)
        return x + 1

    assert walk(function, mx.zeros((8,))).launches == 2
    assert mx.eval.__module__ != __name__  # and evaluation is itself again
    x = mx.ones((2,)) + 1
    mx.eval(x)
    assert x.tolist() == [2, 2]


@pytest.mark.parametrize("positions", ["absolute", "block", "none"])
@pytest.mark.parametrize("history", HISTORIES)
def test_a_walk_sees_both_passes_over_a_segment(history, positions):
    """A segment is run twice from the same arrays; the tracer, left alone, would merge the two."""
    trial = Trial(make_config(history=history, positions=positions, dropout=0.1), segment=2)
    assert trial.work(3, 64, 8).multiply_adds == trial.executed(3, 64, 8)


@pytest.mark.parametrize("kind", ["recurrent", "regular"])
def test_a_token_of_a_stream_copies_no_cache(kind):
    """Beside the weights a token moves a cache four times: read and written to place its own row, then read."""
    model = MODELS[kind](make_config(block=64, positions="block"))
    model.eval()
    state = model.initial_state(1)
    for n in (300, 1):
        _, state = model.step(mx.zeros((1, n), mx.int32), state)
    mx.eval(model.parameters(), state)
    moved = walk(lambda token: model.step(token, state), mx.zeros((1, 1), mx.int32)).bytes
    weights, caches = (sum(array.nbytes for array in arrays(tree)) for tree in (model.parameters(), state))
    assert moved < 2 * weights + 4 * caches


@pytest.mark.parametrize("targets", [3, 99])
@pytest.mark.parametrize("mode", ["training", "forward"])
@pytest.mark.parametrize("model", ["recurrent", "regular"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_work_of_a_long_step_follows_from_short_ones(batch, model, mode, targets, monkeypatch):
    monkeypatch.setattr("mlx_rtx.forecast.step_benchmark.PIECE", 2)
    monkeypatch.setattr("mlx_rtx.training.evaluation.PIECE", 2)
    trial = Trial(make_config(dropout=0.1), model, mode, segment=2)
    assert trial.work(batch, 99, targets) == walk(trial._step(), *trial._data(batch, 99, targets))


def test_a_walk_goes_around_what_cannot_be_written_down(monkeypatch):
    """GPUs have a kernel for cross-entropy, of which the tracer knows no state."""
    stand_ins = []

    def keep(logits, targets):
        stand_ins.append(mx.fast.cross_entropy)
        return mx.fast.cross_entropy(logits, targets)

    logits, targets = mx.random.normal((3, 5), key=mx.random.key(0)), mx.array([0, 4, 2])
    own = mx.fast.cross_entropy
    assert walk(keep, logits, targets).launches > 0
    assert stand_ins[0] is not own is mx.fast.cross_entropy
    assert mx.allclose(stand_ins[0](logits, targets), nn.losses.cross_entropy(logits, targets))


def make_config(**changes):
    return ModelConfig(**{"vocab_size": 7, "max_len": 99, "dim": 8, "heads": 2, "block": 4, **changes})
