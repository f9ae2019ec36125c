"""Steps whose gradient is far larger than the previous ones: skipped, counted and reported, but not forever."""

import math
from dataclasses import replace

from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.trees import flat
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from mlx_rtx.training.spikes import FIRST, MEMORY, SpikeGuard

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from tiny import TINY, check_resuming, events, make_model, make_trainer, saved

GUARDED = replace(TINY, optimizer=OptimizerConfig(lr=1e-2, skip_above=3.0))


def judge(norms, above=3.0):
    """Return the guard's decision for each of these norms, and its mean after each."""
    guard, taken, means = SpikeGuard(make_model(), above, Execution()), [], []
    for norm in norms:
        taken.append(guard.accepts(mx.array(norm)).item())
        means.append(guard.state["mean"].item())
    return taken, means


def test_the_guard_compares_norms_with_their_running_mean():
    """Compared with the formula in float64: the mean of the first norms, then an exponential mean."""
    generator = np.random.default_rng(0)
    norms = np.exp(generator.standard_normal(400)).astype(np.float32)
    mean, expected, below = 0.0, [], []
    for t, norm in enumerate(norms.astype(np.float64)):
        limit = 3 * mean if t >= FIRST else math.inf
        below.append(bool(norm <= limit))
        mean += (min(norm, limit) - mean) / min(t + 1, MEMORY)
        expected.append(mean)
    taken, means = judge(norms.tolist())
    assert taken == below
    assert 5 < taken.count(False) < 100
    assert means == pytest.approx(expected, rel=1e-4)


def test_norms_that_are_not_finite_are_rejected_and_leave_the_mean_unchanged():
    for norms in ([1.0] * 20, []):
        taken, means = judge([*norms, math.nan, math.inf, 1.0])
        assert taken[len(norms) :] == [False, False, True]
        assert means[len(norms)] == means[len(norms) + 1] == (1.0 if norms else 0.0)


@pytest.mark.parametrize(("above", "times"), [(1.1, 20), (2.0, 20), (2.0, 1e6), (10.0, 1e6)])
def test_large_norms_are_accepted_after_a_while(above, times):
    """Each skipped step raises the mean by (F - 1) %, so their number is known."""
    most = math.ceil(math.log(times / above) / math.log1p((above - 1) / MEMORY)) + 2
    taken, _ = judge([1.0] * 200 + [float(times)] * (most + 200), above)
    assert not taken[200]
    assert taken[200:].index(True) <= most
    assert all(taken[200 + most :])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_skipped_step_changes_nothing_else(optimizer):
    model = make_model()
    config = OptimizerConfig(optimizer=optimizer, skip_above=3.0)
    opt, guard = make_optimizer(config, model), SpikeGuard(model, 3.0, Execution())
    ones = tree_map(mx.ones_like, model.trainable_parameters())
    for _ in range(FIRST + 2):
        assert apply_gradients(model, opt, ones, config, guard).taken.item()
    before = {name: np.array(array) for name, array in flat([model.parameters(), opt.state]).items()}
    update = apply_gradients(model, opt, tree_map(lambda g: 4 * g, ones), config, guard)
    count = sum(array.size for array in flat(ones).values())
    assert not update.taken.item()
    assert update.norm.item() == pytest.approx(4 * count**0.5, rel=1e-5)  # before clipping
    for name, array in flat([model.parameters(), opt.state]).items():
        assert np.array_equal(np.array(array), before[name]), name
    assert apply_gradients(model, opt, ones, config, guard).taken.item()


def test_the_guard_does_not_change_training_without_spikes(tmp_path):
    limits = {"guarded": 1e9, "plain": 0.0}
    for name, limit in limits.items():
        make_trainer(tmp_path / name, replace(TINY, optimizer=OptimizerConfig(lr=1e-2, skip_above=limit))).fit()
    (guarded, counters), (plain, others) = (saved(tmp_path / name) for name in limits)
    assert counters == others
    assert guarded.keys() - plain.keys() == {"optimizer.norms.mean", "optimizer.norms.steps"}
    for name, array in plain.items():
        assert np.array_equal(guarded[name], array), name


@pytest.mark.parametrize("stop", [6, 21, 30])
def test_a_run_with_skipped_steps_resumes_bit_exactly(tmp_path, stop):
    config = replace(TINY, optimizer=OptimizerConfig(lr=1e-2, skip_above=1.05, average=0.9))
    check_resuming(tmp_path, config, stop)
    assert events(tmp_path / "whole", "skipped")  # otherwise nothing would be tested


def test_skipped_steps_are_reported_by_reason(tmp_path, capsys):
    """Separately from steps that were not finite; and they do not count as a collapse."""
    config = replace(GUARDED, training=replace(TINY.training, samples=16 * 28))
    trainer = make_trainer(tmp_path, config)
    while trainer.step < 14:
        trainer._take_step()
    trainer._validate()
    assert not events(tmp_path, "skipped")
    trainer.train_step.guard.state["mean"] = mx.array(1e-9)
    for _ in range(4):
        trainer._take_step()
    trainer.train_step.guard.state["mean"] = mx.array(1e9)
    own = trainer.model.parameters()
    trainer.model.update(tree_map(lambda w: w * math.nan, own))
    trainer._take_step()
    trainer.model.update(own)
    trainer._validate()
    assert [(event["skipped"], event.get("above")) for event in events(tmp_path, "skipped")] == [(1, None), (4, 3.0)]
    out = capsys.readouterr().out
    assert "warning: skipped 1 steps with a gradient or weights that would not be finite" in out
    assert "warning: skipped 4 steps with a gradient more than 3 times as large as usual" in out
    trainer.train_step.guard.state["mean"] = mx.array(1e-30)
    for _ in range(7):
        trainer._take_step()
    trainer._validate()
    assert not events(tmp_path, "collapse")


def test_a_collapse_resets_the_norms(tmp_path):
    trainer = make_trainer(tmp_path, GUARDED)
    for _ in range(3):
        trainer._take_step()
    trainer._validate()
    trainer.model.update(tree_map(lambda w: w * math.nan, trainer.model.parameters()))
    trainer._take_step()
    trainer._validate()
    assert len(events(tmp_path, "collapse")) == 1
    assert trainer.train_step.guard.state["steps"].item() == 0
