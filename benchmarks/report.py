"""Report on a machine in a quarter of an hour, on one page that can be sent to others.

    make report
    python benchmarks/report.py --quick              # two or three minutes, with tiny trainings

Runs one after the other, each in a separate process: the benchmarks of time and memory, a trained model whose score is
known, the check of the fused kernels, and a short training of each kind. They share the time. If one fails, the page
says so and the others still run. The page, README.md in benchmarks/results/<machine>, is complete after each part, even
if a later one crashes the machine. Nothing is sent anywhere. Images and text are downloaded once, see docs/usage.md.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_rtx import kernels
from mlx_rtx.forecast.planner import Planner
from mlx_rtx.plan import duration, gigabytes
from mlx_rtx.plots import figures
from mlx_rtx.plots.run_history import read_history
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import write_text
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import write_picture, write_report
from mlx_rtx.tasks.sources import VARIABLE
from mlx_rtx.train import read_command

import mlx.core as mx

from lib.budget import Budget
from lib.machine_results import results_folder
from lib.parts import ROOT, Outcome, Part, carry_out
from lib.report_page import page
from lib.short_training import ShortTraining, read

SECONDS, QUICK_SECONDS = 840.0, 150.0
# frequent validations, so that slow machines reach one, on few samples, so that fast ones lose little time
OFTEN = ["--validate-every", "20", "--validate-samples", "256", "--report-every", "5"]
TRAININGS = {"copy": ["--noise", "4096"], "text": OFTEN, "image": OFTEN}
TINY = ["--dropout", "0", "--warm-up", "0", "--lr-decay", "none", *OFTEN]
QUICK_TRAININGS = {
    "copy": ["--noise", "64"],
    "text": ["--dim", "64", "--heads", "4", "--batch", "16", "--lr", "4e-3", "--samples", "2400", *TINY],
    "image": ["--block", "128", "--batch", "20", "--samples", "1200", *TINY],
}
KEPT = ROOT / "results" / "models" / "copy"


@dataclass(frozen=True, kw_only=True)
class Report(Budget):
    """Run benchmarks, kernel checks and short trainings, and write a page about this machine."""

    quick: bool = False
    """Use smaller and fewer sizes, check the kernels of one task, and run tiny trainings."""
    seconds: float | None = None
    """Approximate time for all parts together; by default 840, or 150 with --quick."""

    @property
    def time(self) -> float:
        """Seconds for all parts."""
        return self.seconds or (QUICK_SECONDS if self.quick else SECONDS)

    @property
    def trainings(self) -> dict[str, list[str]]:
        """Flags of each training, by task."""
        return QUICK_TRAININGS if self.quick else TRAININGS


def main(arguments: list[str]) -> None:
    """Run all parts and write the page; exit with code 1 if a part failed."""
    report = parse(Report, arguments, "python benchmarks/report.py")
    folder, began = results_folder(report.out).absolute(), time.perf_counter()
    if data := os.environ.get(VARIABLE):
        os.environ[VARIABLE] = os.path.abspath(data)  # relative to this working directory, not to the checkout
    if report.quick:
        os.environ.setdefault(kernels.VARIABLE, "0")  # checking kernels of tiny sizes would take longer than training
    with tempfile.TemporaryDirectory() as runs, awake():
        parts = make_parts(report, folder, Path(runs))
        needs = report.memory * 1e9 * backend.memory_gb()
        print(f"device: {backend.device()}")
        print(f"{len(parts)} parts take about {duration(report.time)}, each at most {gigabytes(needs)} of memory")
        print("close other programs and leave the machine idle; Ctrl-C stops it, and the page keeps finished parts")
        print(f"page: {folder / 'README.md'}", flush=True)
        outcomes: list[Outcome] = []
        for outcome in carry_out(parts, report.time, lambda text: print(text, end=" ", flush=True)):
            outcomes.append(outcome)
            print(f"{outcome.text} ({outcome.seconds:.0f} s)", flush=True)
            write(report, folder, Path(runs), outcomes, time.perf_counter() - began)
    failed = [outcome.part.name for outcome in outcomes if outcome.failure]
    print(f"took {duration(time.perf_counter() - began)}; failed: {', '.join(failed) or 'none'}")
    print(f"folder to send: {folder}")
    if failed:
        sys.exit(1)


def make_parts(report: Report, folder: Path, runs: Path) -> list[Part]:
    """Return the parts in order: those that could crash a machine come last."""
    no_gpu = None if mx.default_device() == mx.gpu else "there is no GPU here"
    quick = report.quick

    def benchmark(name: str, seconds: float, *flags: str) -> list[str]:
        limits = ["--seconds", f"{seconds:.0f}", "--memory", str(report.memory), "--out", str(folder)]
        return [f"benchmarks/{name}.py", *limits, *flags]

    sweep = ["--shapes", "image", "copy", "--modes", "training", "--batches", "1", "4"] if quick else ["--quick"]
    sizes = ["--lengths", "128", "512", "--widths", "48", "96"] if quick else []
    contexts = (
        ["--contexts", "256", "--batches", "1"] if quick else ["--contexts", "256", "4096", "--batches", "1", "8"]
    )
    noise = "256" if quick else "4096"
    return [
        Part(
            name="ops_vs_wallclock",
            title="Does counting operations predict time?",
            words=lambda seconds: benchmark("ops_vs_wallclock", seconds, *sweep),
            share=120,
            pictures=("ops_vs_wallclock.png", "ops_vs_wallclock_axes.png"),
        ),
        Part(
            name="growth",
            title="Growth of time and memory",
            words=lambda seconds: benchmark("growth", seconds, *sizes),
            share=75,
            pictures=("growth.png",),
        ),
        Part(
            name="generation",
            title="Cost of a token",
            words=lambda seconds: benchmark("generation", seconds, *contexts),
            share=60,
            pictures=("generation.png",),
        ),
        Part(
            name="kept model",
            title="Trained model, expected to score 100 %",
            words=lambda _: ["-m", "mlx_rtx.evaluate", str(KEPT), "--noise", noise, "--samples", "8", "--batch", "8"],
            share=30,
        ),
        *(
            Part(
                name=f"kernels {task}",
                title=f"Fused kernels: {task}",
                words=lambda seconds, task=task: [  # type: ignore[misc]
                    *("-m", "mlx_rtx.kernel_check", task, "--limit", f"{seconds / 2:.0f}")
                ],
                share=60,
                missing=no_gpu,
            )
            for task in (["copy"] if quick else report.trainings)
        ),
        *(
            Part(
                name=f"training {task}",
                title=f"Training: {task}",
                words=lambda _, task=task, flags=flags: [  # type: ignore[misc]
                    *("-m", "mlx_rtx.train", task, "--out", str(runs / task), *flags)
                ],
                share=60 if quick else 240 if task == "copy" else 120,
                endless=True,
                missing=too_large(task, flags, report),
            )
            for task, flags in report.trainings.items()
        ),
    ]


def too_large(task: str, flags: list[str], report: Report) -> str | None:
    """Return why a training exceeds its share of memory; None if it does not."""
    settings = read_command([task, *flags])[0].settings
    needed = Planner(settings).memory(settings.training.batch, settings.training.segment).peak
    given = report.memory * 1e9 * backend.memory_gb()
    return f"it would need about {gigabytes(needed)} of {gigabytes(given)}" if needed > given else None


def write(report: Report, folder: Path, runs: Path, outcomes: list[Outcome], seconds: float) -> None:
    """Write page, report and picture with the outcomes so far."""
    trainings = [found for task in report.trainings if (found := read(runs / task, task))]
    environment, info = backend.environment(), {name: str(value) for name, value in mx.device_info().items()}
    parts = [
        {"name": o.part.name, "seconds": o.seconds, "failure": o.failure, "skipped": o.skipped, "output": o.output}
        for o in outcomes
    ]
    whole = {"quick": report.quick, "seconds": seconds, "device_info": info}
    write_report(folder, "report", {**whole, "trainings": [asdict(one) for one in trainings], "parts": parts})
    drawn = draw(folder, runs, trainings)
    write_text(folder / "README.md", page(environment, info, outcomes, trainings, not report.quick, seconds, drawn))


def draw(folder: Path, runs: Path, trainings: list[ShortTraining]) -> str | None:
    """Draw all trainings that reached a validation; return the picture's name, or None if there is no picture."""
    histories = []
    for one in trainings:
        with contextlib.suppress(UserError):
            histories.append(read_history(runs / one.task))
    if not histories:
        return None
    with contextlib.suppress(UserError):  # matplotlib is missing
        return write_picture(folder, "training", figures.training(histories)).name
    return None


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep a Mac from sleeping."""
    if not (program := shutil.which("caffeinate")):
        yield
        return
    with subprocess.Popen([program, "-i", "-w", str(os.getpid())]) as process:
        try:
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    run_command(main)
