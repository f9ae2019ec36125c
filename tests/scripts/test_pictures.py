"""The paper's figures from runs: lines show what each seed reported, next to the paper's values."""

from mlx_rtx import train
from mlx_rtx.plots.run_history import read_history

import numpy as np
import pytest

import reproduce
from made_results import metric, write_final
from reproduction.pictures import FIGURES, draw, read_curves
from reproduction.rows import LONGER
from tiny import FLAGS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Train tiny runs as rows of all three figures, one of them with two seeds."""
    path = tmp_path_factory.mktemp("project") / "results"
    regular = ["--model=regular", "--positions=absolute"]
    for name, seed, flags in (
        ("table2/recurrent:paper", 0, []),
        ("table4/selective-copy:default", 0, ["--advance-below=5"]),
        ("table4/selective-copy:default", 1, ["--advance-below=5", "--seed=1"]),
        ("table6/regular-1:paper", 0, regular),
        ("table6/recurrent:paper", 0, []),
    ):
        scores = [metric(0.5)] * (2 + 2 * len(LONGER) if "default" in name else 1)
        folder = write_final(path, name, seed, *scores)
        train.main([*FLAGS, *flags, "--samples=320", "--out", str(folder)])
    return path


def drawn(name, results):
    curves, missing = read_curves(FIGURES[name], results)
    return draw(FIGURES[name], curves), [f"{row.table}/{row.name}" for row in missing]


def test_a_column_per_row(results):
    figure, missing = drawn("figure1", results)
    assert missing == ["table2/regular-4:paper", "table2/recurrent:default"]
    assert figure.get_suptitle() == "Figure 1: grey CIFAR-10"
    top, bottom = figure.axes
    run = read_history(results / "table2" / "recurrent-paper-0")
    assert top.get_title() == "recurrent, paper (1 seed)"
    assert np.array_equal(top.lines[0].get_xydata(), np.stack([run.samples, run.loss], axis=1))
    assert np.array_equal(top.lines[1].get_xydata(), np.stack([run.validated, run.validation_loss], axis=1))
    assert np.array_equal(bottom.lines[0].get_ydata(), 100 * run.accuracy)
    for axis, value, label in ((top, 1.50, "paper: 1.5"), (bottom, 47.3, "paper: 47.3 %")):
        (line,) = (line for line in axis.lines if line.get_linestyle() == "--")
        assert (set(line.get_ydata()), line.get_label()) == ({value}, label)


def test_a_line_per_seed_and_the_stages(results):
    figure, missing = drawn("figure2", results)
    assert missing == ["table4/selective-copy:paper"]
    top, _ = figure.axes
    assert top.get_title() == "selective-copy, default (2 seeds)"
    for seed in (0, 1):
        run = read_history(results / "table4" / f"selective-copy-default-{seed}")
        assert np.array_equal(top.lines[2 * seed].get_ydata(), run.loss)
    assert [text.get_text() for text in top.texts] == ["3", "6", "12"]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["training", "validation", "paper: 0.036"]


def test_loss_over_operations(results):
    figure, missing = drawn("figure3", results)
    assert missing == ["table6/regular-6:paper", "table6/regular-6:nanogpt", "table6/recurrent:default"]
    left, right = figure.axes
    for i, name in enumerate(("regular-1-paper", "recurrent-paper")):
        run = read_history(results / "table6" / f"{name}-0")
        assert np.array_equal(left.lines[i].get_xydata(), np.stack([run.operations, run.loss], axis=1))
        assert np.array_equal(right.lines[i].get_ydata(), run.validation_loss)
    assert [line.get_label() for line in right.lines[2:]] == ["paper: 1.47", "paper: 1.58"]
    assert right.lines[2].get_linestyle() != right.lines[3].get_linestyle()


def test_figures_from_the_command_line(results, tmp_path, capsys):
    reproduce.main(["figures", "--results", str(results)])
    output = capsys.readouterr().out
    for name in FIGURES:
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "figure1: no run yet of: python scripts/reproduce.py table2 --only regular-4:paper" in output
    reproduce.main(["figures", "--results", str(tmp_path)])
    assert capsys.readouterr().out.count("no run yet of") == 10
    assert list(tmp_path.iterdir()) == []
