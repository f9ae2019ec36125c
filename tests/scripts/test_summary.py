"""Means and intervals of summaries, compared with independent calculations."""

import json
import math

from mlx_rtx import UserError

import numpy as np
import pytest

from made_results import metric, row_named, write_final
from reproduction.rows import LONGER
from reproduction.summary import SUMMARY, interval_of, kept_folders, read_summary, summarise, write_summary

T = {2: 12.7062, 3: 4.30265, 5: 2.77645}  # 97.5 % quantile of Student's t for that many seeds, from a printed table


@pytest.mark.parametrize("values", [[0.56, 0.57], [0.47, 0.45, 0.46], [1.467, 1.471, 1.469, 1.48, 1.466]])
def test_several_seeds_use_students_t(values):
    mean, low, high = interval_of([metric(value) for value in values], share=values[0] < 1)
    half = T[len(values)] * np.std(values, ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(np.mean(values), abs=1e-6)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=2e-6)


def test_fractions_stay_between_0_and_1():
    assert interval_of([metric(0.999), metric(0.9)], share=True)[2] == 1.0
    assert interval_of([metric(1.0)] * 3, share=True) == (1.0, 1.0, 1.0)
    assert interval_of([metric(1.4), metric(1.6)], share=False)[2] > 2


def test_one_seed_uses_wilsons_interval():
    """Compared with the equation that the ends of Wilson's interval solve: (p - end)² = z² end (1 - end) / n."""
    mean, *ends = interval_of([metric(0.5622, sequences=10000, answers=10000)], share=True)
    assert mean == 0.5622
    for end in ends:
        assert (0.5622 - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 10000, rel=1e-3)
    assert interval_of([metric(1.0, 0.0, 1024, 1024)], share=True)[2] == 1.0


def test_answers_of_one_sequence_are_not_independent():
    def width(se):
        _, low, high = interval_of([metric(0.9, se, 100, 1600)], share=True)
        return high - low

    alone = math.sqrt(0.9 * 0.1 / 1600)
    together = math.sqrt(0.9 * 0.1 / 100)
    assert width(alone) == pytest.approx(2 * 1.96 * alone, rel=0.01)
    assert width(together) == pytest.approx(2 * 1.96 * together, rel=0.05)
    assert width(2 * together) == width(together) == width(0.0)  # as if each sequence were one answer
    assert width(alone) == width(alone / 2)


def test_one_seed_of_a_loss_uses_its_standard_error():
    assert interval_of([metric(1.47, 0.005)], share=False) == pytest.approx((1.47, 1.4602, 1.4798))


def test_one_loss_without_a_standard_error_has_no_interval():
    """As the loss of one stream; it must not look exact."""
    assert interval_of([metric(1.47, None)], share=False) == (1.47, None, None)
    assert interval_of([metric(1.47, None), metric(1.49, None)], share=False)[1] < 1.47


def test_a_missing_value_has_no_mean():
    assert interval_of([metric(None), metric(0.5)], share=False) == (None, None, None)


def test_an_entry(tmp_path):
    for seed, share, samples in ((0, 0.46, 600000), (10, 0.45, 600000), (2, 0.47, 599880)):
        on = {"samples": samples, "chosen_on": "test set", "revision": "abc1234" if seed else "def5678"}
        on["alpha"] = [0.5] if seed else [0.1, 0.3]
        write_final(tmp_path, "table2/recurrent:paper", seed, metric(share), **on)
    write_final(tmp_path, "table2/recurrent:paper-hidden", 0, metric(0.4))
    (tmp_path / "table2" / "recurrent-paper-7").mkdir()  # not complete
    kept = kept_folders(tmp_path, row_named("table2/recurrent:paper"))
    assert [path.name for path in kept] == [f"recurrent-paper-{seed}" for seed in (0, 2, 10)]
    first, second = summarise(tmp_path, "table2")
    half = T[3] * 0.01 / math.sqrt(3)
    assert first == {
        "row": "recurrent",
        "recipe": "paper",
        "metric": "test_accuracy",
        "mean": pytest.approx(0.46),
        "low": pytest.approx(0.46 - half, abs=2e-6),
        "high": pytest.approx(0.46 + half, abs=2e-6),
        "seeds": [0, 2, 10],
        "paper": 0.473,
        "alpha": 0.35,
        "parameters": 53665,
        "samples": 599960,
        "revision": "abc1234, def5678",
        "device": "Some GPU",
        "chosen_on": "test set",
    }
    assert (second["recipe"], second["seeds"]) == ("paper-hidden", [0])
    write_final(tmp_path, "table2/regular-1:paper", 0, metric(0.4), alpha=[])
    assert summarise(tmp_path, "table2")[2]["alpha"] is None


def test_all_metrics_of_a_row_and_of_rows_that_share_its_runs(tmp_path):
    scores = [metric(1 - i / 100) for i in range(2 + 2 * len(LONGER))]
    write_final(tmp_path, "table4/copy:default", 0, *scores)
    entries = summarise(tmp_path, "table4")
    assert [entry["metric"] for entry in entries[:3]] == [
        "token_accuracy", "sequence_accuracy", "token_accuracy@8192",
    ]  # fmt: skip
    assert [entry["mean"] for entry in entries] == pytest.approx([score["value"] for score in scores])
    assert [entry["paper"] for entry in entries] == [1.0] + [None] * 9
    shared = {(entry["row"], entry["recipe"]) for entry in summarise(tmp_path, "ablations")}
    assert shared == {("copy", "threshold-0.05")}


def test_a_summary_without_runs_is_kept(tmp_path):
    """If no run of a table exists, its summary is not changed."""
    (tmp_path / "table6").mkdir()
    (tmp_path / "table6" / SUMMARY).write_text("[1]")
    write_summary(tmp_path, "table6")
    assert read_summary(tmp_path, "table6") == [1]
    write_final(tmp_path, "table6/regular-6:nanogpt", 0, metric(1.47))
    write_summary(tmp_path, "table6")
    assert read_summary(tmp_path, "table6") == summarise(tmp_path, "table6") != []
    assert read_summary(tmp_path, "table2") == []
    assert json.loads((tmp_path / "table6" / SUMMARY).read_text())[0]["paper"] == 1.47


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(UserError, match=r"pip install 'mlx-rtx\[scaling\]'"):
        interval_of([metric(0.5), metric(0.6)], share=True)
