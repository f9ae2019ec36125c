"""Runs are trained once, resumed if stopped, and copied to the results when complete; workers carry out all of them."""

import json
import os
import signal
import sys
import threading
import time

from mlx_rtx import UserError, evaluate, train
from mlx_rtx.support.stopping import stop_requests
from mlx_rtx.tasks.sources import VARIABLE
from mlx_rtx.training.log import read_lines

import pytest

import reproduce
from made_results import row_named
from reproduction import workers
from reproduction.rows import QUICK
from reproduction.runs import Run, RunFailed, Setting, Stopped, carry_out, short
from reproduction.workers import Processes, carry_out_all, visible_gpus
from tiny import complaint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of tiny copy models."""
    flags = "--noise 64 --payload 2 --dim 8 --heads 2 --samples 64 --batch 8 --test-samples 16 --validate-samples 8"
    monkeypatch.setitem(QUICK, "copy", flags)
    setting = Setting(runs=tmp_path / "work", results=tmp_path / "results", quick=True)
    return Run(row_named("table4/copy:paper"), 0, setting)


class InProcess:
    """Run commands of the package in this process and record them; interrupt training after ``stop_after`` steps."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def __call__(self, command, log):
        module, *arguments = command[2:]
        self.calls.append([module, *arguments])
        if module == "mlx_rtx.evaluate":
            evaluate.main(arguments)
            return 0
        take_step = train.Trainer._take_step

        def step(trainer):
            take_step(trainer)
            if trainer.step == self.stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        train.Trainer._take_step = step
        try:
            train.main(arguments)
        finally:
            train.Trainer._take_step = take_step
        return 0


def test_a_run_is_trained_scored_and_kept(run, capsys):
    call, output = InProcess(), []
    assert not run.complete()
    carry_out(run, call, output.append)
    assert [module for module, *_ in call.calls] == ["mlx_rtx.train", "mlx_rtx.evaluate"]
    assert call.calls[0][1:] == [*run.flags, "--out", str(run.work.path)]
    assert run.complete()
    kept = {path.name for path in run.kept.iterdir()}
    assert kept == {"config.json", "metrics.jsonl", "model.safetensors", "final.json"}
    assert run.kept.name == "copy-paper-0"
    assert not run.work.training.exists()  # no longer needed
    final = json.loads((run.kept / "final.json").read_text())
    printed = capsys.readouterr().out
    assert f"{final['parameters']:,} parameters" in printed
    scores = json.loads((run.work.path / "scores-0.json").read_text())["scores"]
    token, sequence = final["metrics"].values()
    assert token == {"value": scores["accuracy"], "se": scores["accuracy_se"], "sequences": 64, "answers": 128}
    assert sequence["value"] == scores["sequence_accuracy"]
    assert sequence["sequences"] == sequence["answers"] == 64
    assert (final["row"], final["recipe"], final["seed"], final["samples"]) == ("copy", "paper", 0, 64)
    assert (final["flags"], final["chosen_on"], len(final["alpha"])) == (run.flags, None, 1)
    assert output[-1].startswith("done: token_accuracy=")


def test_a_stopped_run_is_resumed(run):
    with pytest.raises(Stopped):
        carry_out(run, InProcess(stop_after=3), str)
    assert not run.trained
    assert not run.complete()
    call, output = InProcess(), []
    carry_out(run, call, output.append)
    assert call.calls[0][-1] == "--resume"
    assert output[0].startswith("resuming")
    steps = [event["step"] for event in read_lines(run.kept / "metrics.jsonl") if event["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8


def test_scores_are_made_once(run):
    """A run that is stopped during scoring is not trained again."""

    class Ends(InProcess):
        def __call__(self, command, log):
            if command[2] == "mlx_rtx.evaluate":
                raise Stopped
            return super().__call__(command, log)

    with pytest.raises(Stopped):
        carry_out(run, Ends(), str)
    assert run.trained
    call = InProcess()
    carry_out(run, call, str)
    assert [module for module, *_ in call.calls] == ["mlx_rtx.evaluate"]
    again = InProcess()
    carry_out(run, again, str)
    assert again.calls == []


def test_results_with_other_flags_are_refused(run, monkeypatch):
    carry_out(run, InProcess(), str)
    monkeypatch.setitem(QUICK, "copy", QUICK["copy"].replace("--dim 8", "--dim 16"))
    with pytest.raises(RunFailed, match=r"--dim 8 .* delete it to train again"):
        run.complete()
    (run.kept / "final.json").unlink()
    with pytest.raises(RunFailed, match=r"was started with .*--dim 8 "):
        carry_out(run, InProcess(), str)


def test_a_large_checkpoint_is_not_copied(run):
    small = Run(run.row, 0, Setting(runs=run.setting.runs, results=run.setting.results, quick=True, keep_mb=0.001))
    carry_out(small, InProcess(), str)
    assert not (small.kept / "model.safetensors").exists()
    assert small.work.model.exists()


def test_a_failing_command_is_reported_with_its_last_line(run):
    def call(command, log):
        log.write_text("starting\nerror: no luck\n\n")
        return 2

    with pytest.raises(RunFailed, match=r"mlx_rtx.train ended with status 2: error: no luck \(.*output.log\)"):
        carry_out(run, call, str)


def test_two_processes_do_not_work_on_one_run(run):
    def call(command, log):
        with pytest.raises(UserError, match="another process is using it"):
            carry_out(run, InProcess(), str)
        raise Stopped

    with pytest.raises(Stopped):
        carry_out(run, call, str)


def test_revisions_are_short():
    assert short("0123456789abcdef") == "0123456"
    assert short("0123456789abcdef+") == "0123456+"
    assert short(None) is None


def waits(log, text):
    while text not in (log.read_text() if log.exists() else ""):
        time.sleep(0.01)


def test_processes_are_asked_to_stop(tmp_path):
    """With SIGTERM, after which they may save; then with SIGKILL, which ends them."""
    code = """
import signal, time

def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    """
    for number, (ending, how) in enumerate([("print('saved')", signal.SIGTERM), ("time.sleep(600)", signal.SIGKILL)]):
        processes, log, raised = Processes(), tmp_path / f"log{number}", []

        def call(processes=processes, log=log, raised=raised, ending=ending):
            try:
                processes.call([sys.executable, "-c", code + ending], log)
            except Stopped:
                raised.append(True)

        thread = threading.Thread(target=call)
        with stop_requests():
            thread.start()
            waits(log, "ready")
            processes.stop()
            processes.stop(how)
            thread.join()
        assert raised == [True]
        assert ("saved" in log.read_text()) == (how is signal.SIGTERM)
        with pytest.raises(Stopped):
            processes.call([sys.executable, "-c", ""], log)


def test_environment_of_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "data")
    code = f"import os; print(os.getcwd(), os.environ['{VARIABLE}'], os.environ['CUDA_VISIBLE_DEVICES'])"
    assert Processes().call([sys.executable, "-c", code], tmp_path / "log", "3") == 0
    assert (tmp_path / "log").read_text().split() == [str(workers.ROOT), str(tmp_path / "data"), "3"]
    assert Processes().call([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "log") == 7


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ["0", "1"]
    assert visible_gpus(0) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,6")
    assert visible_gpus(2) == ["5", "7"]


def runs_of(tmp_path, seeds):
    setting = Setting(runs=tmp_path, results=tmp_path)
    return [Run(row_named("table4/copy:paper"), seed, setting) for seed in range(seeds)]


def test_a_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    used = {}

    def carry_out(run, call, say):
        used.setdefault(call.keywords["gpu"], []).append(run.seed)
        time.sleep(0.02)
        if run.seed == 1:
            raise RunFailed("no luck")

    monkeypatch.setattr(workers, "carry_out", carry_out)
    outcome = carry_out_all(runs_of(tmp_path, 8), 4, ["0", "1"], None)
    assert outcome.failed == {"table4/copy-paper-1": "no luck"}
    assert len(outcome.done) == 7
    assert outcome.stopped == []
    assert sorted(used) == ["0", "1"]
    assert "table4/copy-paper-1 (GPU 1): failed: no luck" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["time", "Ctrl-C"])
def test_unfinished_runs_are_left_for_a_later_call(how, tmp_path, monkeypatch, capsys):
    def carry_out(run, call, say):
        if run.seed == 0:
            return
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        call([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")

    monkeypatch.setattr(workers, "carry_out", carry_out)
    outcome = carry_out_all(runs_of(tmp_path, 3), 1, [], 0.5 if how == "time" else None)
    assert outcome.done == ["table4/copy-paper-0"]
    assert outcome.stopped == ["table4/copy-paper-1", "table4/copy-paper-2"]
    assert outcome.interrupted == (signal.SIGINT if how == "Ctrl-C" else 0)
    assert "run the same command again" in capsys.readouterr().out


def quick(tmp_path, *words):
    reproduce.main([*words, "--quick", "--seeds", "0", "--runs", str(tmp_path)])


def test_from_the_command_line_to_a_table(tmp_path, capsys, monkeypatch):
    """One row from end to end in real processes; a second call runs nothing."""
    before = {path: path.stat().st_mtime_ns for path in (workers.ROOT / "results").rglob("*")}
    quick(tmp_path, "table4", "--only", "copy:paper")
    output = capsys.readouterr().out
    assert "1 rows, 1 runs, 0 of them already complete" in output
    assert "1 done, 0 left for a later call, 0 failed" in output
    results = tmp_path / "quick" / "results"
    summary = json.loads((results / "table4" / "summary.json").read_text())
    assert [(entry["metric"], entry["samples"]) for entry in summary] == [
        ("token_accuracy", 512), ("sequence_accuracy", 512),
    ]  # fmt: skip
    evaluate.main([str(results / "table4" / "copy-paper-0"), "--noise=64", "--samples=64", "--batch=64"])
    assert f" accuracy={summary[0]['mean']:.2%}" in capsys.readouterr().out
    assert "## copy\n\n| recipe | `token_accuracy` |" in (results / "table4" / "README.md").read_text()
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    quick(tmp_path, "table4", "--only", "copy:paper")
    output = capsys.readouterr().out
    assert "1 of them already complete" in output
    assert "written" not in output
    assert before == {path: path.stat().st_mtime_ns for path in (workers.ROOT / "results").rglob("*")}


def test_rows_that_share_runs_are_run_once(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(reproduce, "carry_out_all", lambda runs, *_: asked.extend(runs) or workers.Outcome())
    names = ["image:block-32", "image:layers-1", "image:layers-2", "recurrent:default"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    reproduce.main(["ablations", "table2", "--only", *names, "--seeds", "0", "1", *folders])
    own = ("table2/recurrent-default", "ablations/image-layers-2")
    assert [run.name for run in asked] == [f"{name}-{seed}" for seed in (0, 1) for name in own]


def test_a_dry_run_prints_what_would_be_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "carry_out_all", None)
    quick(tmp_path, "table2", "--only", "regular-4", "--dry-run")
    output = capsys.readouterr().out
    assert output.startswith("table2/regular-4-paper-0: mlx_rtx.train image --recipe paper --model regular --layers 4 ")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_reported_at_the_end(tmp_path, monkeypatch, capsys):
    failed = workers.Outcome(failed={"table4/copy-paper-0": "no luck"})
    monkeypatch.setattr(reproduce, "carry_out_all", lambda *_: failed)
    with pytest.raises(SystemExit) as stop:
        quick(tmp_path, "table4")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "failed: table4/copy-paper-0: no luck\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one of table2"),
        (["table3"], "table3"),
        (["table2", "--only", "copy"], "--only copy: no such row; choose from recurrent, recurrent:default"),
        (["table2", "--jobs", "0"], "--jobs 0"),
        (["table2", "--seeds", "-1"], "seeds=-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(words, message, capsys, monkeypatch):
    assert message in complaint(words, capsys, monkeypatch, reproduce.main)
