"""The report: parts share the time and fail independently, and the page shows each outcome."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from mlx_rtx.kernel_check.__main__ import Arguments as KernelCheck
from mlx_rtx.support.command import run_command
from mlx_rtx.support.parsing import parse, parse_subcommand
from mlx_rtx.train import read_command
from mlx_rtx.training.log import RunLog
from mlx_rtx.training.recipes import recipes_by_task

import pytest

import generation
import growth
import ops_vs_wallclock
import report
from lib import parts, short_training
from lib.parts import Part, carry_out, run
from tiny import complaint

SLEEP = "import time; print('there', flush=True); time.sleep(60)"


def part(code: str, name: str = "some", **changes) -> Part:
    return Part(
        **{"name": name, "title": f"The {name} one", "words": lambda _: ["-S", "-c", code], "share": 1, **changes}
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(parts, "LEAST", 0.0)


def test_a_part_fails_alone():
    output: list[str] = []
    failing, good = carry_out(
        [part("print('x'); raise SystemExit('error: lost')"), part("print('fine')")], 60, output.append
    )
    assert (failing.failure, failing.output) == ("status 1: lost", "x\nerror: lost\n")
    assert (good.text, good.output) == ("done", "fine\n")
    assert [text.partition(",")[0] for text in output] == ["some", "some"]


def test_unused_time_goes_to_other_parts():
    given: list[float] = []

    def words(seconds: float) -> list[str]:
        given.append(seconds)
        return ["-c", ""]

    some = part("", words=words, endless=True)
    missing = replace(some, share=100, missing="nothing to do")
    outcomes = list(carry_out([some, missing, replace(some, share=2)], 60, str))
    assert outcomes[1].text == "skipped: nothing to do"
    assert given[0] == pytest.approx(20, rel=0.01)
    assert given[1] > 50


def test_no_part_is_started_without_time(monkeypatch):
    monkeypatch.setattr(parts, "LEAST", 1e9)
    (outcome,) = carry_out([part("")], 60, str)
    assert outcome.text == "skipped: no time was left"


def test_only_endless_parts_may_be_stopped():
    stopped = run(part(SLEEP, endless=True), 1.0)
    assert (stopped.text, stopped.output) == ("stopped at the end of its time", "there\n")
    assert run(part(SLEEP), 1.0 / parts.LATE).failure == "took longer than 1 s"


def test_no_process_outlives_a_part(monkeypatch):
    """Neither a program that ignores SIGTERM nor its child processes."""
    monkeypatch.setattr(parts, "GRACE", 0.2)
    code = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, os.getpid(), flush=True)
time.sleep(60)
"""
    outcome = run(part(code, endless=True), 1.0)
    assert outcome.seconds < 30
    pids = [int(word) for word in outcome.output.split()]
    assert len(pids) == 2
    for pid in pids:
        for _ in range(100):  # until it has been waited for
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            if "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2:3]:
                break
            time.sleep(0.05)
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("a process was left")


def test_the_page_is_complete_after_each_part(tmp_path, capsys, monkeypatch):
    reading = part(f"print('so far', open({str(tmp_path / 'README.md')!r}).read().count('The some one'))", name="other")
    made = [part("print('progress\\n\\nfound'); print('{}')", pictures=("a.png",)), reading]
    monkeypatch.setattr(
        report, "make_parts", lambda *_: [*made, part("", missing="no GPU"), part("raise OSError('gone')")]
    )
    monkeypatch.setattr("sys.argv", ["report", "--out", str(tmp_path), "--quick"])
    with pytest.raises(SystemExit) as stop:
        run_command(report.main)
    assert stop.value.code == 1
    output, page = capsys.readouterr().out, (tmp_path / "README.md").read_text()
    assert "4 parts take about 2 min" in output
    for words in ("| The other one | ", "so far 3", "```\nfound\n```", "![The some one](a.png)", "skipped: no GPU"):
        assert words in page
    assert "**failed**: status 1: OSError: gone" in page
    assert "quick form" in page
    assert "progress" not in page
    stored = json.loads((tmp_path / "report.json").read_text())
    assert {"versions", "git_revision"} <= stored["environment"].keys()
    assert [part["failure"] for part in stored["parts"]] == [None, None, None, "status 1: OSError: gone"]


@pytest.mark.parametrize("quick", [False, True])
def test_parts_are_valid_commands(quick, tmp_path):
    made = {p.name: p.words(30.0) for p in report.make_parts(report.Report(quick=quick), tmp_path, tmp_path)}
    for name, kind in (
        ("ops_vs_wallclock", ops_vs_wallclock.Sweep),
        ("growth", growth.GrowthCommand),
        ("generation", generation.Generation),
    ):
        assert parse(kind, made[name][1:], "").seconds == 30
    assert (report.ROOT / "results" / "models" / "copy").exists()
    settings = recipes_by_task("default")
    for task, flags in report.Report(quick=quick).trainings.items():
        assert read_command(made[f"training {task}"][2:])[0].out == tmp_path / task
        if not quick and task != "copy":
            assert read_command([task, *flags])[0].settings.architecture == settings[task].architecture
    choices = {"copy": ("", KernelCheck(settings=settings["copy"]))}
    assert parse_subcommand(choices, made["kernels copy"][2:], "", "").limit == 15


def test_a_training_that_does_not_fit_is_skipped():
    assert report.too_large("copy", [], report.Report()) is None
    needs = report.too_large("text", ["--batch", "4096"], report.Report(memory=1e-3))
    assert needs is not None
    assert needs.startswith("it would need about")


def test_results_of_a_short_training(tmp_path):
    assert short_training.read(tmp_path, "text") is None
    log = RunLog(tmp_path / "metrics.jsonl", samples=40)
    for i, rate in ((1, 1.0), (2, 100.0), (3, 120.0), (4, 80.0)):
        pace = {"samples_per_s": rate, "peak_gb": 0.1 * i}
        log.report(step=i, samples=10 * i, loss=3.0 / i, alpha=[0.5], length=16, lr=0.1, tokens_per_s=1.0, **pace)
    scores = {"loss": 0.5, "accuracy": 0.25, "sequence_accuracy": 0.0}
    log.event("validation", "", step=4, samples=40, **scores)
    log.close()
    found = short_training.read(tmp_path, "text")
    assert found is not None
    *_, row = short_training.table([found], whole=True)
    assert row == "| text | 40 | 100.0 | 0.400 | 3.000 | loss 0.500, accuracy 25.0% | 1 h 20 min for 480,000 samples |"
    *_, row = short_training.table([replace(found, validation=None, task="copy")], whole=False)
    assert row.endswith("| not reached | – |")


def test_a_mac_is_kept_awake_until_the_end(tmp_path, monkeypatch):
    program, note = tmp_path / "caffeinate", tmp_path / "note"
    program.write_text(f"#!/bin/sh\necho $$ $@ > {note}.part && mv {note}.part {note}\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(report.shutil, "which", lambda _: str(program))
    with report.awake():
        while not note.exists():
            time.sleep(0.01)
        pid, *words = note.read_text().split()
    assert words == ["-i", "-w", str(os.getpid())]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--memory", "2"]])
def test_wrong_flags(wrong, capsys, monkeypatch):
    assert wrong[0].strip("-") in complaint(wrong, capsys, monkeypatch, report.main)
