"""Plots: they show what the runs reported, and runs that cannot be plotted give an error."""

import itertools
import math
import shutil

from mlx_rtx import plot, train
from mlx_rtx.forecast.operations import paper_ops
from mlx_rtx.model.config import Architecture
from mlx_rtx.plots import figures
from mlx_rtx.plots.run_history import read_history
from mlx_rtx.training.log import RunLog, read_lines

import numpy as np
import pytest

from tiny import FLAGS, complains, complaint, events


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return short runs of both models, the first with stages."""
    path = tmp_path_factory.mktemp("runs")
    train.main([*FLAGS, "--layers=2", "--advance-below=5", "--out", str(path / "recurrent")])
    train.main([*FLAGS, "--model=regular", "--layers=2", "--samples=160", "--out", str(path / "regular")])
    return path


def test_the_better_of_weights_and_average_is_plotted(runs, tmp_path):
    folder, expected, factors = tmp_path / "averaged", [], itertools.cycle([0.5, 2, math.nan])
    shutil.copytree(runs / "recurrent", folder)
    log = RunLog(folder / "metrics.jsonl", 640)
    lines = read_lines(log.path)
    log.path.unlink()
    for line in lines:
        log.note(**line)
        if line["kind"] == "validation":
            factor = next(factors)
            log.note(**line | {"averaged": True, "loss": factor * line["loss"]})
            expected.append((factor if factor == 0.5 else 1) * line["loss"])
    assert read_history(folder).validation_loss.tolist() == expected


def test_a_history_matches_the_reports(runs):
    run = read_history(runs / "recurrent")
    reports, checks = events(runs / "recurrent", "train"), events(runs / "recurrent", "validation")
    assert (run.name, run.description) == ("recurrent", "copy, recurrent, 2 layers")
    assert run.samples.tolist() == [report["samples"] for report in reports]
    assert run.loss.tolist() == [report["loss"] for report in reports]
    assert run.alpha.tolist() == [report["alpha"] for report in reports]
    assert run.validation_loss.tolist() == [check["loss"] for check in checks]
    assert run.accuracy.tolist() == [check["accuracy"] for check in checks]
    assert [noise for _, noise in run.stages] == [3, 6, 12]
    shape = Architecture(dim=16, heads=2, block=4, layers=2)
    before, total = 0, 0
    for report, so_far in zip(reports, run.operations, strict=True):
        total += (report["samples"] - before) * paper_ops(shape, report["noise"] + 4)
        before = report["samples"]
        assert so_far == total
    assert run.validated_operations[-1] == run.operations[-1]
    assert read_history(runs / "regular").alpha.shape[1] == 0


def test_reports_of_different_numbers_of_alphas_are_refused(runs, tmp_path):
    """As in a modified log of a version without checksums."""
    shutil.copytree(runs / "recurrent", tmp_path / "run")
    log = RunLog(tmp_path / "run" / "metrics.jsonl", 640)
    last = read_lines(log.path)[-1]
    log.note(**events(tmp_path / "run", "train")[-1] | {"step": last["step"], "alpha": [0.5]})
    complains(read_history, tmp_path / "run", words=r"its reports have \[1, 2\] values of α")


def test_contents_of_the_plots(runs):
    histories = [read_history(runs / name) for name in ("recurrent", "regular")]
    first = histories[0]
    axes = figures.training(histories).axes
    assert (
        axes[1].get_legend()._loc_real > 0
    )  # searching for the best place of a legend may take long and then gives a warning
    assert len(axes) == 4
    assert np.array_equal(axes[0].lines[0].get_xydata(), np.stack([first.samples, first.loss], axis=1))
    assert np.array_equal(axes[0].lines[1].get_ydata(), first.validation_loss)
    assert np.array_equal(axes[2].lines[0].get_ydata(), 100 * first.accuracy)
    assert [text.get_text() for text in axes[2].texts] == ["3", "6", "12"]
    left, right = figures.operations(histories).axes
    assert [line.get_label() for line in left.lines] == ["recurrent", "regular"]
    assert np.array_equal(left.lines[0].get_xdata(), first.operations)
    assert np.array_equal(right.lines[0].get_ydata(), first.validation_loss)
    (axis,) = figures.alphas(histories).axes
    assert [line.get_label() for line in axis.lines] == ["recurrent, layer 1", "recurrent, layer 2"]
    assert np.array_equal(axis.lines[1].get_ydata(), first.alpha[:, 1])
    assert "no α" in figures.alphas(histories[1:]).axes[0].texts[0].get_text()


def test_files(runs, tmp_path, capsys, monkeypatch):
    plot.main([str(runs / "recurrent")])
    written = capsys.readouterr().out.split()
    assert len(written) == 6
    for name in ("training", "operations", "alpha"):
        assert (runs / "recurrent" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (runs / "recurrent" / f"{name}.svg").read_bytes()
    monkeypatch.chdir(tmp_path)
    plot.main([str(runs / "recurrent"), str(runs / "regular")])
    assert len(list((tmp_path / "plots").iterdir())) == 6


def test_runs_that_cannot_be_plotted(runs, tmp_path, capsys, monkeypatch):
    output = complaint([], capsys, monkeypatch, plot.main)
    assert "name at least one run folder" in output
    assert "no such run folder" in complaint([str(tmp_path / "none")], capsys, monkeypatch, plot.main)
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.json").write_bytes((runs / "recurrent" / "config.json").read_bytes())
    assert "needs at least two reports" in complaint([str(young)], capsys, monkeypatch, plot.main)
    (tmp_path / "file").write_text("")
    arguments = [str(runs / "recurrent"), "--out", str(tmp_path / "file")]
    assert "cannot create this folder" in complaint(arguments, capsys, monkeypatch, plot.main)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    output = complaint([str(runs / "recurrent")], capsys, monkeypatch, plot.main)
    assert "mlx-rtx[plot]" in output
