"""The benchmarks: counts, fits to synthetic times, and each program from end to end."""

import json
import sys
from dataclasses import asdict, replace

from mlx_rtx import ModelConfig
from mlx_rtx.model.config import Architecture
from mlx_rtx.support.reports import write_report
from mlx_rtx.tasks import Shape

import mlx.core as mx
import numpy as np
import pytest

import generation
import generation_length
import growth
import model_cost
import ops_vs_wallclock
from lib import machine_results, sweep, sweep_summary
from lib.ceilings import Ceilings, measure_ceilings
from lib.fit import fit_time, proportional, r_squared
from lib.sweep import Group, Point, Size
from tiny import complaint


def test_a_fit_finds_the_rates_that_made_the_times():
    generator = np.random.default_rng(0)
    counts = np.exp(generator.uniform([2, 10, 8], [9, 25, 20], (60, 3)))
    seconds = np.array([1e-5, 1e-10, 1e-9])
    fit = fit_time(counts @ seconds, counts)
    assert np.allclose(fit.seconds, seconds, rtol=1e-6)
    assert fit.r2 == pytest.approx(1)


def test_a_rate_that_would_be_negative_is_zero():
    counts = np.array([[1.0, 1e6, 1e3], [1.0, 2e6, 1e3], [1.0, 4e6, 1e3], [1.0, 9e6, 1e3]])
    fit = fit_time(1e-9 * counts[:, 1] ** 1.5 / 1e3, counts)  # grows faster than any count
    assert min(fit.seconds) == 0
    assert fit.seconds[1] > 0


def test_the_batch_from_which_arithmetic_sets_the_time():
    """1,000 launches of 10 µs and 1 ms of arithmetic per sample are equal at ten samples."""
    one, two = np.array([1000, 1e7, 0.0]), np.array([1000, 2e7, 0.0])
    times = np.array([0.011, 0.012, 0.014, 0.018])
    counts = np.stack([one, two, 2 * two - np.array([1000, 0, 0]), 4 * two - np.array([3000, 0, 0])])
    fit = fit_time(times, counts)
    assert fit.arithmetic_batch(one, two) == pytest.approx(10)


def test_r_squared_of_predictions():
    times = np.array([1.0, 2.0, 4.0, 8.0])
    assert r_squared(times, times) == 1
    assert proportional(times, 7 * times) == pytest.approx(1)
    assert proportional(times, times[::-1]) < 0
    assert proportional(times, np.sqrt(times)) == pytest.approx(0.75)


def test_ceilings_are_positive(monkeypatch):
    monkeypatch.setattr("lib.ceilings.LONG", 1e-4)
    ceilings = measure_ceilings(size=64, megabytes=1)
    assert min(ceilings.multiply_adds_per_s, ceilings.bytes_per_s, ceilings.launches_per_s) > 0


LONG = sweep.Subject(Architecture(dim=12, heads=6, block=8, positions="block"), Shape(5, 40, 40))
TINY = {
    "image": sweep.Subject(
        Architecture(dim=8, heads=2, block=8, tie_embeddings=False), Shape(16, 32, 1, out_size=4), regular=(1, 4)
    ),
    "copy": sweep.Subject(Architecture(dim=8, heads=2, block=8, dropout=0.1), Shape(5, 40, 4)),
    "long": LONG,
}
COPY = Size(1, 40, 8, 8)


@pytest.fixture
def tiny(monkeypatch):
    """Replace the subjects by ones that take milliseconds, and run them in this process."""
    monkeypatch.setattr(sweep, "SUBJECTS", TINY)
    monkeypatch.setattr(sweep, "SHORTEST", 0.0)
    for module in (ops_vs_wallclock, growth):
        monkeypatch.setattr(module, "call_group", sweep.run_group)
    monkeypatch.setattr(ops_vs_wallclock, "measure_ceilings", lambda: measure_ceilings(64, 1))
    monkeypatch.setattr("lib.ceilings.LONG", 1e-4)
    monkeypatch.setattr(ops_vs_wallclock, "LENGTHS", (16, 64))
    monkeypatch.setattr(ops_vs_wallclock, "BLOCKS", (4, 8))


def test_counts_of_points(tiny):
    """Counts grow with the batch, launches do not; points include predicted memory."""
    for group in sweep.groups(("image", "copy")):
        own = sweep.own_size(group.subject)
        two, six = sweep.run_group(group, [replace(own, batch=2), replace(own, batch=6)], 60.0, 1e3)
        assert (two.size.batch, six.size.batch) == (2, 6)
        assert (six.paper, six.true, six.executed) == (3 * two.paper, 3 * two.true, 3 * two.executed)
        assert six.launches == two.launches > 0
        assert two.bytes < six.bytes < 3 * two.bytes
        assert two.fastest <= two.seconds <= two.slowest
        assert 0 < two.predicted_gb[0] <= two.predicted_gb[1] < six.predicted_gb[1]
    assert len(sweep.groups(("image", "copy"))) == 8
    assert [group.mode for group in sweep.groups(("image",), ("regular",), ("training",))] == ["training"] * 2


def test_a_size_that_would_not_fit_is_left_out_and_reported(tiny):
    group, large = Group("copy", "recurrent", 1, "training"), replace(COPY, batch=1024)
    reason, last = sweep.run_group(group, [large, COPY], 60.0, 0.001)
    assert "B=1024 L=40 K=8 D=8 left out: would need about" in reason
    assert last.size == COPY
    first, reason = sweep.run_group(group, [COPY, large], 0.0, 1e3)
    assert first.size == COPY
    assert "B=1024 L=40 K=8 D=8 left out: would take about" in reason


def test_the_time_of_a_size_is_expected_from_those_before(tiny):
    """The estimate scales with arithmetic or launches; of the bounds from several points the smallest counts."""
    wide, slow = replace(COPY, dim=16), replace(COPY, batch=8)
    points = [point(COPY, 1.0, executed=100), point(wide, 5.0, executed=400), point(slow, 9.0, executed=800)]
    bench = sweep.Bench(Group("copy", "recurrent", 1, "training"), replace(COPY, length=80))
    assert sweep._expected(bench, points) == pytest.approx(min(bench.executed / 100, 5 * bench.executed / 400))
    points[0] = replace(points[0], executed=bench.executed)
    assert sweep._expected(bench, points[:1]) == 2.0
    assert sweep._expected(bench, []) == 0


def test_a_crashed_process_loses_one_size(tiny, tmp_path, monkeypatch):
    """Cheap sizes come first; after a crash the next process measures the remaining ones."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, sys\n"
        "for size in json.loads(sys.argv[1])[1]:\n"
        "    if size['batch'] == 2: sys.exit(9)\n"
        "    print(json.dumps(str(size['batch'])), flush=True)\n"
    )
    monkeypatch.setattr(sweep, "WORKER", [sys.executable, str(worker)])
    sizes = [replace(COPY, batch=batch) for batch in (4, 2, 1)]
    one, died, four = sweep.call_group(Group("copy", "recurrent", 1, "forward"), sizes, 60.0, 1.0)
    assert (one, four) == ("1", "4")
    assert died == "B=2 L=40 K=8 D=8 left out: its process ended with 9"


def test_sizes_of_a_sweep(tiny):
    recurrent, regular = Group("copy", "recurrent", 1, "forward"), Group("image", "regular", 1, "forward")
    star = ops_vs_wallclock.Sweep().sizes(recurrent)
    assert {size.batch for size in star if (size.length, size.block) == (40, 8)} == set(ops_vs_wallclock.BATCHES)
    assert {size.length for size in star if size.batch == 8} == {16, 40, 64}
    assert {size.block for size in star} == {4, 8}
    assert {size.block for size in ops_vs_wallclock.Sweep().sizes(regular)} == {8}
    given = ops_vs_wallclock.Sweep(batches=(1, 2), lengths=(16,), blocks=(4, 8), widths=(8, 16))
    assert len(given.sizes(recurrent)) == 8
    assert len(given.sizes(regular)) == 4
    assert len(ops_vs_wallclock.Sweep(full=True).sizes(recurrent)) == 9 * 3 * 2
    assert ops_vs_wallclock.Sweep(quick=True).sizes(recurrent) == [replace(COPY, batch=batch) for batch in (1, 8, 64)]
    assert ops_vs_wallclock.Sweep(quick=True).time < ops_vs_wallclock.Sweep().time < 300


def test_a_sweep_from_end_to_end(tiny, tmp_path, capsys):
    out = tmp_path / "report"
    ops_vs_wallclock.main(["--shapes", "image", "copy", "--batches", "1", "4", "--blocks", "4", "8", "--out", str(out)])
    output = capsys.readouterr().out
    expected = ("peak rates:", "image regular-4, training", "R² =", "The fit:", "measured time", "ms over block width")
    for words in (*expected, "share of the machine's ceiling", "of the three counts"):
        assert words in output
    last = json.loads(output.splitlines()[-1])
    stored = json.loads((out / "ops_vs_wallclock.json").read_text())
    assert stored["answer"] == last
    assert len(stored["points"]) == 2 * 2 * (2 + 2) + 2 * 2 * 2
    assert {"versions", "device", "git_revision", "tf32", "memory_gb", "processor"} <= stored["environment"].keys()
    assert last["image_ratio"]["paper"] == pytest.approx(TINY_RATIO)
    for name in ("ops_vs_wallclock", "ops_vs_wallclock_axes"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


TINY_RATIO = (4 * 8 * 32 * 8 + 2 * 32 * 64) / (4 * (32**2 * 8 + 32 * 64))


def point(size: Size, seconds: float, **changes) -> Point:
    """Return a synthetic point of a training step of the tiny copy subject."""
    made = {"peak_gb": 1.0, "predicted_gb": (0.9, 1.0), "launches": 1000, "bytes": 10**6, "paper": 1, "true": 1}
    made |= {"executed": 10**6 * size.batch, "fastest": seconds, "slowest": seconds, "first": seconds} | changes
    return Point(group=Group("copy", "recurrent", 1, "training"), size=size, seconds=seconds, **made)


def test_answer_from_synthetic_points(tiny):
    """Time is proportional to the batch, at half of every ceiling."""
    points = [
        point(replace(COPY, batch=batch), batch, launches=1000 * batch, bytes=10**6 * batch) for batch in (1, 2, 4)
    ]
    points.append(point(replace(COPY, batch=2, block=4), 2.0, peak_gb=1.2, launches=2000, bytes=2 * 10**6))
    answer = sweep_summary.conclude(points, Ceilings(2e6, 2e6, 2e3))
    name = "copy recurrent, training"
    assert answer.achieved[name] == {"batch": 1, "launches": 0.5, "arithmetic": 0.5, "bytes": 0.5}
    assert answer.r2["executed"] == pytest.approx(1)
    assert answer.within == {name: answer.r2}
    assert "over its sizes, it does not (R² above 0.9): copy recurrent, training." in sweep_summary.words(answer)
    assert answer.memory == {"points": 4, "within": 3, "smallest": 1.0, "largest": 1.2}
    assert list(sweep_summary.along(points, "block").values()) == [[points[3], points[1]]]
    assert sweep_summary.along(points, "length") == {}
    assert [p.size.batch for p in sweep_summary.over_batches(points)] == [1, 2, 4]
    assert "3 of 4 training steps above 0.1 GB were within 15 % of the prediction" in sweep_summary.words(answer)


def test_a_sweep_is_compared_with_other_machines(tmp_path, monkeypatch):
    answer = {"r2": {"paper": 0.1, "true": 0.2, "executed": 0.3}, "fit": {"r2": 0.9}}
    monkeypatch.setattr(machine_results, "RESULTS", tmp_path)
    folder = machine_results.results_folder(tmp_path / "some-machine")
    write_report(folder, "ops_vs_wallclock", {"ceilings": asdict(Ceilings(1e12, 1e11, 1e5)), "answer": answer})
    (row,) = (line for line in ops_vs_wallclock.all_machines().splitlines() if "some-machine" in line)
    assert row.split()[1:] == ["1,000", "100", "100", "0.100", "0.200", "0.300", "0.900"]


def test_growth_from_end_to_end(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "SHORT", 64)
    growth.main(["--lengths", "16", "32", "64", "128", "--widths", "12", "24", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    for words in ("long regular-1, training: from 16 to 128 tokens time grows as", "model is faster", "GB"):
        assert words in output
    stored = json.loads((tmp_path / "growth.json").read_text())
    assert json.loads(output.splitlines()[-1]) == stored["exponents"]
    assert len(stored["points"]) == 4 * 5  # 64 tokens at the model's own width belong to both
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_exponents_of_synthetic_growth(tiny, monkeypatch):
    monkeypatch.setattr(growth, "SUBJECT", "copy")
    points = [
        point(replace(COPY, length=length), length**2.0, peak_gb=length**0.5) for length in (8, 1024, 2048, 4096, 8192)
    ]
    (found,) = growth.grows(points).values()
    assert found == {"from": 1024, "to": 8192, "time": pytest.approx(2), "memory": pytest.approx(0.5)}


def test_growth_is_drawn_if_no_width_was_measured(tiny, monkeypatch):
    monkeypatch.setattr(growth, "SUBJECT", "copy")
    assert growth.picture([point(replace(COPY, length=length), 1.0) for length in (8, 16)])


@pytest.fixture
def short(monkeypatch):
    """Generate few tokens with small models."""
    monkeypatch.setattr(generation, "TEXT", replace(generation.TEXT, architecture=LONG.architecture))
    monkeypatch.setattr(generation, "TOKENS", 5)


def test_generation_from_end_to_end(short, tmp_path, capsys):
    generation.main(["--contexts", "8", "16", "--batches", "1", "2", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    stored = json.loads((tmp_path / "generation.json").read_text())
    assert len(stored["rows"]) == 2 * 2 * 3
    answer = json.loads(output.splitlines()[-1])
    assert [(row["context"], row["batch"]) for row in answer] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    assert "times regular-6, cached" in output
    state = {(r["context"], r["batch"]): r["state_mb"] for r in stored["rows"] if r["method"] == generation.RECURRENT}
    assert state[8, 1] == state[16, 1] == state[8, 2] / 2 > 0
    assert (tmp_path / "generation.png").read_bytes().startswith(b"\x89PNG")


def test_generation_leaves_out_what_would_not_fit(short, monkeypatch):
    monkeypatch.setattr(generation.backend, "memory_gb", lambda: 1e-6)
    rows = list(generation.measure(generation.Generation(contexts=(8,), batches=(1,))))
    assert len(rows) == 3
    assert all("would need about" in row for row in rows)


@pytest.mark.parametrize(("kind", "method"), [("recurrent", generation.RECURRENT), ("regular", generation.CACHED)])
def test_timed_generation_is_correct(short, monkeypatch, kind, method):
    """Tokens generated from a state equal those of a recomputation of the whole text."""
    model = generation.make(kind, ModelConfig(**asdict(LONG.architecture), vocab_size=65, max_len=64))
    written: dict = {}
    monkeypatch.setattr(generation, "timed", lambda step, *_: written.update(tokens=[step().item() for _ in range(6)]))
    generation.continued(method, model, 11, 1)
    tokens = mx.random.randint(0, 65, (1, 11), key=mx.random.key(11))
    for token in [mx.argmax(model(tokens, last=1, close=False)[0, -1]).item(), *written["tokens"]]:
        assert token == mx.argmax(model(tokens, last=1, close=False)[0, -1]).item()
        tokens = mx.concatenate([tokens, mx.array([[token]])], axis=1)


def test_generation_length_writes_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation_length, "TEXT", replace(generation_length.TEXT, architecture=LONG.architecture))
    monkeypatch.setattr(generation_length, "FIRST", 16)
    monkeypatch.setattr(generation_length, "ROUNDS", 2)
    generation_length.main(["--tokens", "200", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "generation_length.json").read_text())
    assert [row["tokens"] for row in stored["rows"]] == [16, 160]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio"] == stored["ratio"]


def test_model_cost_reads_training_commands(short, tmp_path, capsys):
    small = "--vocab-size 300 --dim 8 --heads 2 --length 16 --batch 2"
    commands = [f"text {small} --block 4", f"text --model regular --layers 2 {small}"]
    model_cost.main([*commands, "--contexts", "8", "16", "--repeats", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "model_cost.json").read_text())["rows"]
    assert rows == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["command"], row.get("context")) for row in rows] == [(c, at) for c in commands for at in (None, 8, 16)]
    assert all(rows[i]["tokens"] == 2 * 16 for i in (0, 3))
    first, second = rows[1]["state_mb"], rows[2]["state_mb"]
    assert first == second > 0  # the state of the recurrent model
    model_cost.main([commands[0], "--contexts", "8", "--repeats", "1", "--seconds", "1e-9", "--out", str(tmp_path)])
    (_, left_out) = json.loads((tmp_path / "model_cost.json").read_text())["rows"]
    assert "time was up" in left_out["left_out"]


@pytest.mark.parametrize(
    ("main", "wrong"),
    [
        (ops_vs_wallclock.main, [flag, value])
        for flag, value in (("--batches", "0"), ("--seconds", "0"), ("--memory", "2"))
    ]
    + [(ops_vs_wallclock.main, ["--shapes", "video"]), (ops_vs_wallclock.main, ["--quick", "--full"])]
    + [(model_cost.main, ["--repeats", "0", "text"])]
    + [(growth.main, ["--lengths", "0"]), (growth.main, ["--batch", "0"]), (generation.main, ["--contexts", "0"])]
    + [(generation.main, ["--seconds", "0"]), (generation_length.main, ["--tokens", "1"])],
)
def test_wrong_flags(main, wrong, capsys, monkeypatch):
    assert wrong[0].strip("-") in complaint(wrong, capsys, monkeypatch, main)
