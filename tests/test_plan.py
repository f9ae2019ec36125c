"""The planner: what fits, its proposal, predicted times, and the output of the command."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

from mlx_rtx import plan
from mlx_rtx.forecast import planner as planning
from mlx_rtx.forecast.machines import MACHINES
from mlx_rtx.forecast.planner import Planner
from mlx_rtx.forecast.recipe_times import SOLVED
from mlx_rtx.forecast.step_benchmark import StepBenchmark, StepTiming
from mlx_rtx.support.errors import UserError
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.recipes import COPY, IMAGE, RECIPES, TEXT
from mlx_rtx.training.settings import RunConfig

import pytest

from tiny import complaint

ROOT = Path(__file__).parent.parent


def settings(recipe: RunConfig = COPY, **training) -> RunConfig:
    return replace(recipe, training=replace(recipe.training, **training))


@pytest.mark.parametrize("recipe", [COPY, IMAGE, TEXT])
def test_a_choice_fits_and_the_next_larger_batch_does_not(recipe):
    planner = Planner(recipe)
    rows = planner.choices(1e9)
    assert rows
    assert [row.segment for row in rows][:3] == [1, 2, 4]
    assert rows[-1].segment == -(-recipe.task.shape.length // recipe.architecture.block)
    for row in rows:
        assert planner.memory(row.batch, row.segment).peak <= 1e9 < planner.memory(2 * row.batch, row.segment).peak
        assert row.memory == planner.memory(recipe.training.batch, row.segment)


def test_a_regular_transformer_has_no_segments():
    (row,) = Planner(replace(TEXT, model="regular")).choices(1e9)
    assert row.segment == 16


def test_a_proposal_shortens_segments_before_it_reduces_the_batch():
    planner = Planner(settings(batch=64, segment=12))
    own = planner.memory(64, 12).peak
    assert planner.proposal(own) == (64, 12)
    batch, segment = planner.proposal(own - 1)
    assert (batch, segment) == (64, 8)
    least = min(row.memory.peak for row in planner.choices(own))
    batch, segment = planner.proposal(least - 1)
    assert batch < 64
    assert planner.memory(batch, segment).peak < least
    assert planner.proposal(1e5) is None


def test_the_time_of_a_long_step_is_extrapolated_from_two_short_ones(monkeypatch):
    """Time is made linear in length; the timed lengths are at most an eighth of the full one."""
    timed = []

    def measure(trial, batch, length, targets, repeats):
        timed.append((batch, length, targets))
        return StepTiming(0.25 + 0.001 * length, 0, 0, 0, 0)

    monkeypatch.setattr(StepBenchmark, "measure", measure)
    monkeypatch.setattr(planning, "multiply_adds_per_second", lambda: 1e15)
    assert Planner(settings(segment=4)).seconds(32, 4) == (pytest.approx(0.25 + 4.128), (256, 512), 32)
    assert timed == [(32, 256, 16), (32, 512, 16)]
    assert Planner(settings(TEXT)).seconds(64, 8) == (pytest.approx(0.506), (256,), 64)
    assert timed[-1] == (64, 256, 256)


def test_work_on_another_machine_includes_the_multiply_adds_of_kernels():
    planner = Planner(settings(IMAGE), MACHINES["m4"])
    assert planner.memory(120, 16).queued > 0
    assert planner.work(120, 16).multiply_adds == planner.benchmark(16).executed(120, 1024, 1)


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16e9), ("500 MB", 5e8), ("1.5g", 1.5e9), ("2TB", 2e12), ("1000", 1000), ("8GiB", 8e9)]
)
def test_sizes(text, size):
    assert plan.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "16XB", "-1GB", "0GB", "1.2.3GB"])
def test_wrong_sizes(text):
    with pytest.raises(UserError, match="must be a size such as 16GB"):
        plan.size_in_bytes(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((0.123, 0.345), "0.12 to 0.34 s"),
        ((30, 119), "30 to 120 s"),
        ((100, 121), "1.7 to 2 min"),
        ((5e3, 5.002e3), "83 min"),
    ],
)
def test_ranges_of_times(seconds, text):
    assert plan.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds, text):
    assert plan.duration(seconds) == text


TINY = ["copy", "--noise", "64", "--dim", "12", "--block", "8", "--batch", "4", "--segment", "2"]


def test_a_plan_from_end_to_end(capsys):
    plan.main([*TINY, "--memory", "16GB"])
    output = capsys.readouterr().out
    for words in ("length=96", "16 GB, of which a run may use 10.7 GB", "--segment", "4,096+"):
        assert words in output
    assert "the run's own settings fit: --batch 4 --segment 2" in output
    assert "from steps timed at 32 and 64 tokens" in output or "from steps timed at 96 tokens" in output
    assert "20,000 samples take" in output
    assert "a curriculum begins with short ones" in output


def test_a_plan_for_another_machine_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr(StepBenchmark, "measure", None)
    plan.main([*TINY, "--machine", "m4"])
    output = capsys.readouterr().out
    assert "; estimates from published measurements" in output
    assert re.search(r"a step takes [0-9.]+ to [0-9.]+ s, an estimate: .* launches\n", output)


def test_an_overview_prints_the_times_in_the_readme(capsys, monkeypatch):
    monkeypatch.setattr(StepBenchmark, "measure", None)
    plan.main(["--machine", "m4"])
    time = r"([0-9.]+ to [0-9.]+ (?:s|min|h))"
    rows = re.findall(rf"^([a-z-]+) +[0-9,]+ .* {time}(?: \(until.*)?$", capsys.readouterr().out, re.MULTILINE)
    page = re.findall(rf"^\| ([a-z ]+), .* \| {time} \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {task for task, recipes in RECIPES.items() if "paper" in recipes}
    assert {(name.replace("-", " "), text) for name, text in rows} == set(page)


def test_the_samples_of_solved_recipes_match_their_results():
    """Compared with the stored metrics, within the variation between seeds."""
    for task, solved in SOLVED.items():
        samples = tokens = 0
        runs = list((ROOT / "results" / "table4").glob(f"{task}-default-*"))
        for run in runs:
            reports = [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
            for before, report in itertools.pairwise([{"samples": 0}, *reports]):
                tokens += (report["samples"] - before["samples"]) * report["length"]
            samples += reports[-1]["samples"]
        assert len(runs) == 3
        assert (samples / 3, tokens / samples) == pytest.approx((solved.samples, solved.length), rel=0.15)


def test_a_plan_of_a_regular_transformer_names_no_segment(capsys):
    plan.main(["text", "--model", "regular", "--dim", "12", "--batch", "2", "--length", "32"])
    assert "the run's own settings fit: --batch 2\n" in capsys.readouterr().out


def test_a_plan_that_does_not_fit_proposes_one_that_does(capsys):
    plan.main(["copy", "--batch", "1024", "--memory", "1GB", "--machine", "m4"])
    assert "the run's own settings do not fit; use: --batch" in capsys.readouterr().out


def test_verification_fails_if_memory_differs_from_the_prediction(capsys, monkeypatch):
    planner = Planner(settings())
    predicted = planner.memory(32, 8).peak
    monkeypatch.setattr(Planner, "verify", lambda *_: StepTiming(1.1, 1, 1, 1, round(1.1 * predicted)))
    plan.verify(planner, 32, 8, 1.0)
    output = capsys.readouterr().out
    assert "verified: peak" in output
    assert "+10.0% from" in output
    assert "a step 1.1 s, +10.0%" in output
    monkeypatch.setattr(Planner, "verify", lambda *_: StepTiming(1.0, 1, 1, 1, round(0.8 * predicted)))
    with pytest.raises(SystemExit) as stop:
        plan.verify(planner, 32, 8, 1.0)
    assert stop.value.code == 1
    assert "by more than 15%" in capsys.readouterr().err


def test_verification_runs_whole_steps(capsys):
    timing = Planner(settings(IMAGE, batch=2)).verify(2, 16)
    assert timing.peak_bytes > 0
    assert timing.seconds > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--memory", "lots"], "must be a size such as 16GB"),
        (["--memory", "1MB"], "memory=1 MB: not even one sequence fits"),
        (["--machine", "m4", "--verify"], "only this machine can be verified"),
        (["--noise", "0"], "noise=0"),
        (["--recipe", "fast"], "recipe"),
    ],
)
def test_wrong_flags(wrong, words, capsys, monkeypatch):
    assert words in complaint(["copy", *wrong], capsys, monkeypatch, plan.main)
