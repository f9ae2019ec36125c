"""The instruments of the benchmarks: what they count, and what they fit to made-up times."""

import json

from mlx_rtx.config import Architecture

import mlx.core as mx
import numpy as np
import ops_vs_wallclock
import pytest
import sweep
from ceilings import measure_ceilings
from fit import fit_time, proportional, r_squared
from graph import Work, walk
from test_commands import complaint


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


def test_a_fit_finds_the_rates_that_made_the_times():
    generator = np.random.default_rng(0)
    counts = np.exp(generator.uniform([2, 10, 8], [9, 25, 20], (60, 3)))
    seconds = np.array([1e-5, 1e-10, 1e-9])
    fit = fit_time(counts @ seconds, counts)
    assert np.allclose(fit.seconds, seconds, rtol=1e-6)
    assert fit.r2 == pytest.approx(1)


def test_a_rate_that_would_be_negative_is_none():
    counts = np.array([[1.0, 1e6, 1e3], [1.0, 2e6, 1e3], [1.0, 4e6, 1e3], [1.0, 9e6, 1e3]])
    fit = fit_time(1e-9 * counts[:, 1] ** 1.5 / 1e3, counts)  # grows faster than any of them
    assert min(fit.seconds) == 0
    assert fit.seconds[1] > 0


def test_the_batch_from_which_arithmetic_sets_the_time():
    """1,000 launches of 10 µs against 1 ms of arithmetic a sample: from ten samples on."""
    one, two = np.array([1000, 1e7, 0.0]), np.array([1000, 2e7, 0.0])
    times = np.array([0.011, 0.012, 0.014, 0.018])
    counts = np.stack([one, two, 2 * two - np.array([1000, 0, 0]), 4 * two - np.array([3000, 0, 0])])
    fit = fit_time(times, counts)
    assert fit.arithmetic_batch(one, two) == pytest.approx(10)


def test_how_good_a_prediction_is():
    times = np.array([1.0, 2.0, 4.0, 8.0])
    assert r_squared(times, times) == 1
    assert proportional(times, 7 * times) == pytest.approx(1)
    assert proportional(times, times[::-1]) < 0
    assert proportional(times, np.sqrt(times)) == pytest.approx(0.75)


def test_ceilings_are_positive():
    ceilings = measure_ceilings(size=64, megabytes=1, launches=20)
    assert min(ceilings.multiply_adds_per_s, ceilings.bytes_per_s, ceilings.launches_per_s) > 0


TINY = {
    "image": sweep.Shape(
        Architecture(dim=8, heads=2, block=8, tie_embeddings=False), 16, 32, 1, out_size=4, regular=(1, 4)
    ),
    "copy": sweep.Shape(Architecture(dim=8, heads=2, block=8, dropout=0.1), 16, 40, 4),
}


@pytest.fixture
def tiny(monkeypatch):
    """Shapes that take milliseconds, run without a process of their own."""
    monkeypatch.setattr(sweep, "SHAPES", TINY)
    monkeypatch.setattr(sweep, "SHORTEST", 0.0)
    monkeypatch.setattr(ops_vs_wallclock, "call_group", sweep.run_group)
    monkeypatch.setattr(ops_vs_wallclock, "measure_ceilings", lambda: measure_ceilings(64, 1, 20))


def test_points_are_what_their_group_says(tiny):
    """Counts grow with the batch, launches do not; what is executed is what the walk finds."""
    for group in sweep.groups(("image", "copy")):
        two, six = sweep.run_group(group, (6, 2), 60.0, 1e3)
        assert (two.batch, six.batch) == (2, 6)
        assert (six.paper, six.true, six.executed) == (3 * two.paper, 3 * two.true, 3 * two.executed)
        assert six.launches == two.launches > 0
        assert two.bytes < six.bytes < 3 * two.bytes
        assert two.fastest <= two.seconds <= two.slowest
        runner = sweep.Runner(group)
        assert [runner.work(size).multiply_adds for size in (2, 6)] == [two.executed, six.executed]
        assert runner.work(5) == walk(runner._make(), *runner._data(5))
    assert len(sweep.groups(("image", "copy"))) == 8


def test_a_batch_that_would_not_fit_is_left_out_and_said(tiny):
    group = sweep.Group("copy", "recurrent", 1, "training")
    first, said = sweep.run_group(group, (1, 1024), 60.0, 0.001)
    assert first.batch == 1
    assert "batch 1024 and above left out: would need about" in said
    first, said = sweep.run_group(group, (1, 1024), 0.0, 1e3)
    assert "batch 1024 and above left out: would take about" in said


def test_a_process_that_dies_costs_its_own_points(capfd):
    (said,) = sweep.call_group(sweep.Group("no such shape", "recurrent", 1, "forward"), (1,), 1.0, 1.0)
    assert "its process ended with 1" in said
    assert "KeyError" in capfd.readouterr().err


def test_a_sweep_from_end_to_end(tiny, tmp_path, capsys):
    ops_vs_wallclock.main(["--shapes", "image", "copy", "--batches", "1", "4", "--out", str(tmp_path / "report")])
    said = capsys.readouterr().out
    for words in ("at best:", "image regular-4, training:", "R² =", "The fit:", "by the clock", "set the time"):
        assert words in said
    last = json.loads(said.splitlines()[-1])
    report = json.loads((tmp_path / "report" / "ops_vs_wallclock.json").read_text())
    assert report["answer"] == last
    assert len(report["points"]) == 16
    assert {"versions", "device", "git_revision"} <= report["environment"].keys()
    assert last["image_ratio"]["paper"] == pytest.approx(TINY_RATIO)
    assert (tmp_path / "report" / "ops_vs_wallclock.png").read_bytes().startswith(b"\x89PNG")


TINY_RATIO = (4 * 8 * 32 * 8 + 2 * 32 * 64) / (4 * (32**2 * 8 + 32 * 64))


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--seconds", "0"], ["--memory", "2"], ["--shapes", "video"]])
def test_wrong_flags_of_the_sweep(wrong, capsys, monkeypatch):
    assert wrong[0].strip("-") in complaint(wrong, capsys, monkeypatch, ops_vs_wallclock.main)
