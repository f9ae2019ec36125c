"""The figures quoted in the pages agree with the reports."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from reproduction.lengths_rows import LENGTHS, TEXTS
from reproduction.summary import of_metric, read_summary
from tiny import events

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def report(machine: str, name: str) -> dict:
    return json.loads((RESULTS / machine / f"{name}.json").read_text())


def summary(table: str, metric: str) -> dict[tuple[str, str], dict]:
    return of_metric(read_summary(ROOT / "results", table), metric)


def best_accuracy(run: str) -> float:
    """Return the mean accuracy of three seeds at their best validations during training."""
    validations = [events(ROOT / "results" / f"{run}-{seed}", "validation") for seed in range(3)]
    return mean(min(of_run, key=lambda event: event["loss"])["accuracy"] for of_run in validations)


def text(path: str) -> str:
    return " ".join((ROOT / path).read_text().split())


@pytest.mark.parametrize("machine", ["nvidia-h200", "intel-xeon-2-cores"])
def test_r_squared_of_counts(machine):
    answer = report(machine, "ops_vs_wallclock")["answer"]
    page = text("benchmarks/README.md")
    for r2 in (*answer["r2"].values(), answer["fit"]["r2"]):
        assert f"| {r2:.3f} " in page
    for share in (answer["image_ratio"]["time"], answer["image_ratio"]["executed"]):
        assert f"{100 * share:.1f} %" in page
    for group, r2 in answer["within"].items():
        assert f"{r2['paper']:.2f} |" in page.partition(f"| {group} |")[2][:40]


def test_summary_in_the_readme():
    answer, own = report("nvidia-h200", "ops_vs_wallclock")["answer"], text("README.md")
    for r2 in (answer["fit"]["r2"], answer["r2"]["paper"]):
        assert f"{r2:.2f}".replace("-", "−") in own
    for share in (answer["image_ratio"]["time"], answer["image_ratio"]["memory"]):
        assert f"{100 * share:.1f} %" in own


def test_pytorch_comparison():
    page = text("benchmarks/README.md")
    for timings in report("nvidia-h100-80gb-hbm3", "peers")["answer"].values():
        for timing in timings.values():
            assert f"{1e3 * timing['seconds']:.1f} ms, {timing['peak_gb']:.2f} GB" in page
    earlier = [timings for name, timings in report("nvidia-h200", "peers")["answer"].items() if "training" in name]
    for contender, verb in (("torch eager", "eager took "), ("torch graphs", "the graph "), ("mlx", "ours ")):
        first, second, third = (f"{1e3 * timings[contender]['seconds']:.1f}" for timings in earlier)
        assert re.search(rf"{verb}{first}, {second} and {third}\b", page), contender


def test_cost_of_a_token():
    page = text("benchmarks/README.md")
    for machine in ("nvidia-h200", "intel-xeon-2-cores"):
        for row in report(machine, "generation")["rows"]:
            cells = page.partition(f"| {row['context']:,} | {row['batch']} |")[2][:120]
            assert f" {row['tokens_per_s']:,.0f} |" in cells


def test_growth_exponents():
    page = text("benchmarks/README.md")
    exponents = report("nvidia-h200", "growth")["exponents"]
    for name, kind in (("long recurrent, forward", "time"), ("long recurrent, training", "time")):
        assert f"L^{exponents[name][kind]:.2f}" in page
    for name in exponents:
        assert f"L^{exponents[name]['memory']:.2f}" in page


def test_larger_models():
    page, entries = text("docs/scale.md"), summary("scale", "validation_loss")
    names = {"recurrent": ("D 512", "D 960", "D 1,920"), "regular": ("3 layers", "4 layers", "8 layers")}
    for kind, models in names.items():
        for size, model in zip(("5m", "15m", "50m"), models, strict=True):
            _, _, *cells = page.partition(f"| {kind}, {model}")[2].split(" | ")
            for cell, recipe in zip(cells, ("gcide", "wikitext-2"), strict=False):
                entry = entries[f"{kind}-{size}", recipe]
                assert cell == f"{entry['mean']:.3f}", (kind, size, recipe)
                assert entry["seeds"] == [0, 1, 2]
    variants = {
        "four layers": "layers-4", "two layers": "layers-2", "K 256": "block-256", "the program's": "output",
        "one α per head": "head", "K 64": "block-64", "gated α": "gated", "one α per channel": "channel",
    }  # fmt: skip
    for start, variant in variants.items():
        entry = entries[f"recurrent-15m-{variant}", "gcide"]
        cell = page.partition(f"| {start}")[2].split(" | ")[1]
        assert cell.removesuffix(" |") == f"{entry['mean']:.3f}", variant
        assert entry["seeds"] == [0, 1, 2]
    for kind, fit in json.loads((ROOT / "results/scale/fits.json").read_text(encoding="utf-8")).items():
        if kind != "environment":
            beta, _, error, *_ = page.partition(f"| {kind} | ")[2].split(" | ")
            assert beta == "{value:.2f} ({low:.2f} … {high:.2f})".format(**fit["beta"]), kind
            assert error.startswith(f"{100 * fit['spread']:.1f} %"), kind


def test_sequence_lengths():
    page, entries = text("docs/scale.md"), summary("lengths", "stream_loss")
    for length in LENGTHS:
        of_length = [entries[f"length-{length}", recipe] for recipe in TEXTS]
        assert all(entry["seeds"] == [0, 1, 2] for entry in of_length)
        cells = " | ".join(f"{entry['mean']:.3f}" for entry in of_length)
        assert f"| {length:,} | {cells} |" in page
    paths = (ROOT / "results" / "lengths").glob("*/final.json")
    finals = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    accuracies = {(L, recipe): best_accuracy(f"lengths/length-{L}-{recipe}") for L in LENGTHS for recipe in TEXTS}
    low, high = 100 * min(accuracies.values()), 100 * max(accuracies.values())
    assert f"predict {low:.1f} to {high:.1f} % of the characters" in page
    alphas = [final["alpha"][0] for final in finals if final["recipe"] in TEXTS]
    assert f"in all {len(alphas)} runs" in page
    assert min(alphas) > 0.003
    assert max(alphas) < 0.009
    windows = summary("lengths", "validation_loss")
    near = {"48": "near", "80": "near-80", "112": "near-112", "240": "near-240", "48, K 64": "near-block-64"}
    for case, recipe in {**near, "48, regular": "regular-near"}.items():
        entry = windows["length-1024", recipe]
        own = [final["alpha"][0] for final in finals if final["recipe"] == recipe and final["alpha"]]
        alpha = "–".join(dict.fromkeys(f"{value:.2f}" for value in (min(own), max(own)))) if own else "none"
        accuracy = 100 * best_accuracy(f"lengths/length-1024-{recipe}")
        assert f"| {case} | {entry['mean']:.3f} | {accuracy:.1f} % | {alpha} |" in page, recipe
        assert entry["seeds"] == [0, 1, 2]


def test_scaling_law():
    page, found = text("docs/scaling.md"), ROOT / "results" / "scaling"
    unique, fits = (json.loads((found / f"{name}.json").read_text()) for name in ("unique", "fits"))
    low, high = unique["band"]
    for corpus in unique["texts"]:
        rows = zip(corpus["lengths"], corpus["exponents"], corpus["first"], corpus["last"], strict=True)
        for length, exponent, first, last in rows:
            values = (exponent["value"], first, last)
            assert not all(low <= value <= high for value in values)  # "no length"
            if length in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 64, 1024):
                row = page.partition(f"| {length:,} | ")[2].partition(f"| {length + 1:,} | ")[0][:400]
                assert "{:z.2f} ({:z.2f}, {:z.2f})".format(*values) in row
    kinds = [value for name, value in fits.items() if "N:" in name]
    assert len(kinds) == 4
    for fit in kinds:
        assert f"{100 * fit['spread']:.1f} %" in page
        for name in ("beta", "gamma_low", "gamma_high"):
            assert "{value:.3g} ({low:.3g} … {high:.3g})".format(**fit[name]) in page


def test_reports_record_their_environment():
    found = [path for path in RESULTS.glob("*/*.json") if path.stem != "config"]
    found += (ROOT / "results" / "scaling").glob("*.json")
    assert len(found) >= 10
    for path in found:
        environment = json.loads(path.read_text())["environment"]
        assert {"versions", "platform", "device", "device_name", "tf32", "git_revision"} <= environment.keys()
        assert environment["versions"]["mlx"]


def test_speed_before_and_after():
    """The table agrees with the log of its run."""
    page, log = text("benchmarks/NOTES.md"), (RESULTS / "nvidia-h200" / "speed.log").read_text()
    found = re.findall(r"^(before|plain|kernels) (\w+) (\w+) ([\d.]+) ms .* peak ([\d.]+)$", log, re.MULTILINE)
    assert len(found) == 18
    for _, task, mode, ms, gb in found:
        row = page.partition(f"| {task} {mode} |")[2][:200]
        assert f"{float(ms):.2f} ms, {float(gb):.3f} GB" in row
