"""Scaling law: the paper's numbers, fits that recover known constants, and the commands."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from mlx_rtx import UserError, scaling
from mlx_rtx.scaling import __main__ as command
from mlx_rtx.scaling import corpora, grid
from mlx_rtx.scaling.published import PUBLISHED
from mlx_rtx.scaling.regression import fit_losses
from mlx_rtx.scaling.theory import Fit, excess_bounds, gamma, unique_bounds
from mlx_rtx.support.json_lines import append_line

import numpy as np
import pytest

LOSSES = Path(__file__).parents[2] / "results" / "scaling" / "losses.jsonl"
CHINCHILLA = Fit(1.69, 406.4, 0.34, 410.7, 0.28)


def test_the_papers_numbers():
    assert scaling.gamma(0.28) == (0.44, 0.72)
    assert gamma(0.095) == (0.81, 0.905)
    assert unique_bounds(0.28, 1e10) == pytest.approx((10**4.4, 10**7.2))
    assert excess_bounds(100, 10_000) == (0.01, 0.1)


@pytest.mark.parametrize("beta", [0, -0.3, 1, 1.2])
def test_invalid_exponents(beta):
    with pytest.raises(UserError, match=f"beta={beta}: must lie between 0 and 1"):
        gamma(beta)


def test_lemma_1_follows_from_theorem_1_and_equation_3():
    """As N → ∞, Δ = B/D^β; at the ends of γ it equals the bounds |S|/D and √(|S|/D) of Theorem 1."""
    for D in (1e6, 1e9, 1e12):
        excess = D**-0.28
        low, high = unique_bounds(0.28, D)
        assert excess_bounds(high, D)[0] == pytest.approx(excess)
        assert excess_bounds(low, D)[1] == pytest.approx(excess)


def test_the_optimum_is_the_least_loss_of_its_operations():
    for operations in (1e18, 5.76e23):
        N, D = CHINCHILLA.optimum(operations)
        assert pytest.approx(operations) == 6 * N * D
        for factor in (0.5, 0.99, 1.01, 2):
            assert CHINCHILLA.loss(factor * N, D / factor) > CHINCHILLA.loss(N, D)
    (few, _), (many, _) = CHINCHILLA.optimum(1e18), CHINCHILLA.optimum(1e20)
    assert np.log(many / few) / np.log(100) == pytest.approx(CHINCHILLA.exponents()[0])
    assert sum(CHINCHILLA.exponents()) == pytest.approx(1)


def test_published_fits_are_consistent():
    """The exponent a of N ∝ C^a printed in a source follows from its own exponents, within their rounding."""
    both = [one for one in PUBLISHED if one.fit and one.allocation]
    assert len(both) >= 2
    for one in both:
        assert one.fit.exponents() == pytest.approx(one.allocation, abs=0.01)
    assert PUBLISHED[0].fit == CHINCHILLA
    assert len({one.name for one in PUBLISHED}) == len(PUBLISHED)
    assert all("arXiv" in one.source for one in PUBLISHED)


def surface(noise=0.0, fit=CHINCHILLA):
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e5, 1e9, 6), np.geomspace(1e6, 1e10, 6)))
    return N, D, fit.loss(N, D) * np.exp(noise * np.random.default_rng(0).normal(size=len(N)))


def test_a_fit_recovers_known_constants():
    found = fit_losses(*surface(), resamples=20)
    assert found.fit == pytest.approx(CHINCHILLA, rel=0.02)
    assert found.spread < 1e-5
    low, high = found.gammas()
    assert (low.value, high.value) == pytest.approx((0.44, 0.72), abs=0.01)


def test_intervals_contain_the_known_constants():
    found = fit_losses(*surface(noise=0.003), resamples=100)
    for name, exact in CHINCHILLA._asdict().items():
        value, low, high = found.interval(name)
        assert low < value < high
        assert low < exact < high
    assert found.allocation().low < 0.4516 < found.allocation().high
    assert found.report()["beta"]["low"] == found.interval("beta").low


def test_an_outlier_hardly_changes_a_fit():
    N, D, losses = surface()
    losses[7] *= 1.3
    assert fit_losses(N, D, losses, resamples=20).fit.beta == pytest.approx(0.28, abs=0.01)


def test_fewer_runs_than_constants_are_refused():
    N, D, losses = surface()
    with pytest.raises(UserError, match="runs=5: five constants need six runs or more"):
        fit_losses(N[:5], D[:5], losses[:5])
    with pytest.raises(UserError, match="three sizes of model and of data"):
        fit_losses(N[:6], D[:6], losses[:6])  # a single D


TEXT = "".join(f"{i % 10} times {i % 7} is {i % 10 * (i % 7)}.\n" for i in range(1200))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "tables.txt"
    path.write_text(TEXT)
    return path


def test_a_grid_is_trained_and_continues_after_a_stop(text, tmp_path, capsys):
    arguments = ["train", str(text), "--dims", "4", "8", "--halvings", "1", "--lrs", "5e-3", "--out", str(tmp_path)]
    command.main([*arguments, "--models", "recurrent"])
    assert "4 runs, 0 done before" in capsys.readouterr().out
    command.main(arguments)
    assert "8 runs, 4 done before" in capsys.readouterr().out
    losses = grid.read_losses(tmp_path / "losses.jsonl")
    assert len(losses) == 8
    most = int(0.9 * len(TEXT)) // grid.LENGTH * grid.LENGTH
    assert {loss.point.characters for loss in losses} == {most, most // 2}
    for loss in losses:
        assert 0 < loss.tokens <= loss.point.characters
        assert 0 < loss.embeddings < loss.parameters
        assert 1 < loss.loss < 4
    assert json.loads(losses[0].row())["dim"] in (4, 8)


def test_a_grid_in_several_processes(text, tmp_path, capfd):
    arguments = ["--dims", "4", "8", "--halvings", "0", "--models", "recurrent", "--jobs", "2", "--out", str(tmp_path)]
    command.main(["train", str(text), *arguments])
    assert {loss.point.dim for loss in grid.read_losses(tmp_path / "losses.jsonl")} == {4, 8}


def test_the_best_learning_rate_counts():
    point = grid.GridPoint("recurrent", 1, 8, 1000, 1e-3)
    rows = [grid.Loss(replace(point, lr=lr), 2, 1, 1000, 2, loss, 0.1, 1.0, "") for lr, loss in ((1e-3, 2), (2e-3, 1))]
    other = replace(rows[0], point=replace(point, dim=4))
    assert grid.best_runs([*rows, other]) == [rows[1], other]


def test_noise_between_seeds():
    point = grid.GridPoint("recurrent", 1, 8, 1000, 1e-3)
    runs = [a_loss(replace(point, seed=seed), np.exp(seed / 100)) for seed in range(3)]
    assert grid.seed_noise(runs) == pytest.approx(0.01)
    assert grid.seed_noise(runs[:1]) is None
    assert grid.seed_noise([*runs, a_loss(replace(point, dim=4), 5.0)]) == pytest.approx(0.01)


def test_fit_from_end_to_end(tmp_path, capsys):
    rows = []
    for model in ("recurrent", "regular"):
        for N, D, loss in zip(*surface(noise=0.003), strict=True):
            point = grid.GridPoint(model, 1, int(N), int(D), 1e-3)
            rows.append(replace(a_loss(point, loss), parameters=int(N), embeddings=int(N) // 10, tokens=int(D)).row())
    (tmp_path / "losses.jsonl").write_text("\n".join(rows) + "\n")
    command.main(["fit", "--losses", str(tmp_path / "losses.jsonl"), "--resamples", "20", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert output.count("36 runs") == 4
    report = json.loads((tmp_path / "fits.json").read_text())
    assert report["recurrent, N: all parameters"]["beta"]["value"] == pytest.approx(0.28, abs=0.02)
    assert (tmp_path / "losses.png").stat().st_size > 10_000


def test_a_run_without_a_finite_loss_is_left_out(tmp_path, capsys):
    path, point = tmp_path / "losses.jsonl", grid.GridPoint("recurrent", 1, 8, 1000, 1e-3)
    path.write_text(a_loss(point, np.nan).row() + "\n" + a_loss(point, 1.0).row() + "\n")
    with pytest.raises(UserError, match="runs=1: five constants"):
        command.main(["fit", "--losses", str(path)])
    assert "1 runs left out" in capsys.readouterr().out


def a_loss(point, loss):
    return grid.Loss(point, 10, 1, point.characters, 5, float(loss), 0.01, 1.0, "")


def test_count_from_end_to_end(text, tmp_path, capsys):
    limits = ["--size", "2000", "--lengths", "1", "4", "16", "--decades", "2", "--starts", "2"]
    command.main(["count", str(text), *limits, "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert "tables, characters: " in output
    assert "copies of one piece: 2,000 tokens" in output
    report = json.loads((tmp_path / "unique.json").read_text())
    assert [found["name"] for found in report["texts"]] == ["tables, characters", "tables, words"]
    assert len(report["made corpora"]) == len(corpora.MADE)
    assert report["band"] == [0.44, 0.72]
    for name in ("unique", "unique_made", "gamma"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_theory_from_end_to_end(capsys):
    command.main([])
    output = capsys.readouterr().out
    assert "0.44 … 0.72" in output
    assert "0.27 … 0.63" in output  # the refitted constants
    command.main(["theory", "--beta", "0.28"])
    assert "grow as D^0.44 to D^0.72" in capsys.readouterr().out


def test_only_the_lengths_that_a_short_text_has_are_counted(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("the quick brown fox jumps over the lazy dog")
    command.main(["count", str(tmp_path / "short.txt"), "--no-made", "--starts=2", "--out", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert "not counted, because there are fewer than 10 sequences: l = 48, 64, 128, 256, 512, 1024" in output
    assert "short, words: not counted, 9 tokens are too few" in output
    (growth,) = json.loads((tmp_path / "out" / "unique.json").read_text())["texts"]
    assert growth["lengths"] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32]


def test_a_plot_that_cannot_be_drawn_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command.main(["count", "--size=200", "--starts=2", "--lengths", "1", "2", "--out", str(tmp_path)])
    assert "picture gamma skipped (plot: needs matplotlib" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["unique.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["count", "empty.txt", "--no-made"], "empty.txt: is empty; give a text"),
        (["count", "short.txt", "--no-made", "--lengths", "8"], "too long for all corpora"),
        (["count", "--no-made", "short.txt", "--lengths"], "lengths: name at least one"),
        (["count", "--decades", "1e9"], "decades=1000000000.0: must be above 0 and at most 20"),
        (["train", "--halvings", "2147483647"], "halvings=2147483647: must be at most 40"),
        (["count", "missing.txt", "--no-made"], "missing.txt"),
        (["count", "--no-made"], "texts: name at least one"),
        (["count", "--size", "10000000000"], "size=10000000000: must be at most 1,000,000,000"),
        (["count", "--starts", "1"], "starts=1"),
        (["theory", "--beta", "2"], "beta=2"),
        (["theory", "--operations", "0"], "operations=0"),
        (["fit", "--losses", "missing.jsonl"], "missing.jsonl: no losses of a grid"),
        (["fit", "--losses", "short.txt"], "short.txt: no losses of a grid"),
        (["fit", "--losses", "empty.txt"], "empty.txt: contains no run"),
        (["train", "short.txt"], "halvings=5: leaves only 0 characters"),
        (["train", "--lrs", "0"], "lrs="),
        (["dance"], "dance"),
    ],
)
def test_wrong_input_gets_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match=words) as error:
        command.main(arguments)
    assert "\n" not in str(error.value)


def test_a_row_truncated_by_a_crash_does_not_affect_others(tmp_path, capsys):
    """Regression test: the whole file was refused, so that a grid could not continue."""
    kept = LOSSES.read_bytes().splitlines(keepends=True)[:3]
    path = tmp_path / "losses.jsonl"
    path.write_bytes(b"".join(kept) + kept[0][:40])
    assert len(grid.read_losses(path)) == 3
    assert "line 4 is damaged" in capsys.readouterr().err
    append_line(path, kept[1].decode().strip())
    assert [loss.point for loss in grid.read_losses(path)][3] == grid.read_losses(path)[1].point
    path.write_bytes(b'\xff\n[1]\n{}\n{"model": "recurrent", "dim": "8"}\n')
    with pytest.raises(UserError, match="no losses of a grid"):
        grid.read_losses(path)


@pytest.mark.parametrize("wrong", [{"loss": 0.0}, {"loss": -1}, {"tokens": 0}, {"parameters": 5, "embeddings": 5}])
def test_an_impossible_row_is_left_out(wrong, tmp_path, capsys):
    """Regression test: its logarithm made a fit end with a traceback."""
    row = json.loads(LOSSES.read_bytes().splitlines()[0])
    (tmp_path / "losses.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps({**row, **wrong})}\n")
    assert len(grid.read_losses(tmp_path / "losses.jsonl")) == 1
    assert "line 2 is damaged" in capsys.readouterr().err
