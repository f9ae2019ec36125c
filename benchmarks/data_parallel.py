"""Speed-up of data-parallel training with several ranks on one machine, with the default recipes.

    python benchmarks/data_parallel.py --seconds 150

Times training steps of copy, image and text on random tokens, with the recipe's batch per rank (weak scaling) and in
all (strong scaling). It also times one rank with its share of the batch, and an all-reduce of the gradient alone.
The program starts the ranks itself, with MLX's NCCL backend and one GPU per rank on CUDA, or its ring backend on a CPU,
and ends those that hang. It prints a table in Markdown, which is also written next to the report, and one line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_each
from mlx_rtx.support.files import write_text
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import write_report
from mlx_rtx.training.recipes import RECIPES

import mlx.core as mx

from lib.machine_results import results_folder
from lib.ranks_launch import Backend, run_ranks
from lib.ranks_pace import Effort, Pace, Point, points, settings_of

BENCHMARKS = Path(__file__).parent
WORKER = [sys.executable, "-m", "lib.ranks_pace"]
SECONDS, QUICK_SECONDS = 150.0, 60.0
MARGIN = 0.9  # fraction of the time after which ranks start nothing new
FIRST = 0.92  # fraction of the time for the largest group; the rest is for smaller ones, in case it fails
QUICK = Effort(trials=3, steps=2, warm_up=1, exchanges=5, small=True)


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """Measure the speed of training with several ranks."""

    tasks: tuple[str, ...] = ("copy", "image", "text")
    """Tasks, trained with their default recipes."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks; those above the number of GPUs, or of CPU cores without a GPU, are left out."""
    seconds: float | None = None
    """Maximum time in all; by default 150, or 60 with --quick."""
    quick: bool = False
    """Use tiny sizes and few steps, to test that everything works."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require_each(self, "ranks", least=1, most=64)
        require(self.seconds is None or self.seconds > 0, f"seconds={self.seconds}: must be above 0")
        unknown = [task for task in self.tasks if task not in RECIPES]
        require(bool(self.tasks) and not unknown, f"tasks={unknown}: choose from {', '.join(RECIPES)}")


def main(arguments: list[str]) -> None:
    """Measure, and print the speed-up."""
    command = parse(DataParallel, arguments, "python benchmarks/data_parallel.py")
    by: Backend = "nccl" if mx.cuda.is_available() else "ring"
    there = mx.device_count(mx.gpu) if by == "nccl" else (os.cpu_count() or 1)
    sizes = sorted(n for n in set(command.ranks) | {1} if n <= there)
    print(f"device: {backend.device()}; ranks {', '.join(map(str, sizes))} of at most {there}, with {by}", flush=True)
    effort = QUICK if command.quick else Effort()
    todo = [
        point
        for task in command.tasks
        for point in points(task, sizes, settings_of(task, effort.small)[0].training.batch)
    ]
    todo.sort(key=lambda point: point.scaling == "alone")  # these help to interpret the others but are less important
    paces, left_out = collect(todo, sizes, by, effort, command.seconds or (QUICK_SECONDS if command.quick else SECONDS))
    require(bool(paces), f"nothing was measured: {'; '.join(left_out)[:400]}; give it more --seconds")
    text = table(paces)
    print("", text, "", *left_out, sep="\n")
    folder = results_folder(command.out)
    report = {"backend": by, "effort": asdict(effort), "left_out": left_out, "paces": [asdict(pace) for pace in paces]}
    write_report(folder, "data_parallel", report)
    write_text(folder / "data_parallel.md", text + "\n")
    print(f"report: {folder}")
    print(json.dumps(gains(paces)))


def collect(
    todo: list[Point], sizes: list[int], by: Backend, effort: Effort, seconds: float
) -> tuple[list[Pace], list[str]]:
    """Return all paces, and a line for each one that is missing.

    If the backend can split groups, the largest number of ranks measures the smaller ones as subgroups, so that kernels
    are built once. Points that this leaves are measured with separate ranks.
    """
    end = time.monotonic() + seconds
    found: list[Pace] = []
    left_out: list[str] = []
    for size in reversed(sizes):
        parts = by == "nccl"
        missing = [point for point in todo if point not in map(point_of, found)]
        asked = [point for point in missing if (point.ranks <= size if parts else point.ranks == size)]
        left = end - time.monotonic()
        if not asked or left <= 0:
            continue
        share = left * (1.0 if size == 1 else FIRST if parts else len(asked) / len(missing))
        request = {"points": [asdict(p) for p in asked], "effort": asdict(effort), "seconds": MARGIN * share}
        print(f"{size} ranks, at most {share:.0f} s …", flush=True)
        output = run_ranks([*WORKER, json.dumps(request)], size, by, share, BENCHMARKS)
        if output.failure:
            left_out.append(f"{size} ranks: {output.failure}")
        for line in output.out.splitlines():
            if line.startswith('{"pace"'):
                found.append(Pace(**json.loads(line)["pace"]))
            elif line.startswith('{"left_out"'):
                left_out.append(json.loads(line)["left_out"])
    return found, left_out


def point_of(pace: Pace) -> Point:
    """Return the point that was measured."""
    return Point(task=pace.task, ranks=pace.ranks, rows=pace.rows, scaling=pace.scaling)


def one_rank(paces: Sequence[Pace], task: str) -> Pace | None:
    """Return the pace of the recipe with one rank, if it was measured."""
    return next((pace for pace in paces if pace.task == task and pace.ranks == 1 and pace.scaling == "strong"), None)


def gains(paces: Sequence[Pace]) -> dict[str, Any]:
    """Return the speed-up in samples per second over one rank, by task, kind of scaling and ranks."""
    return {
        f"{pace.task} {pace.scaling} {pace.ranks}": round(pace.samples_per_s / one.samples_per_s, 3)
        for pace in paces
        if pace.ranks > 1 and (one := one_rank(paces, pace.task))
    }


def table(paces: Sequence[Pace]) -> str:
    """Return a Markdown table, sorted by task, kind of scaling and ranks."""
    titles = ("task", "scaling", "ranks", "sequences per step", "ms per step", "samples/s", "× one rank", "efficiency")
    rows = [f"| {' | '.join(titles)} | all_sum alone, ms | MB | last loss |", "|---" * (len(titles) + 3) + "|"]
    order = {"strong": 0, "weak": 1, "alone": 2}
    for pace in sorted(paces, key=lambda pace: (pace.task, order[pace.scaling], pace.ranks, -pace.rows)):
        one = one_rank(paces, pace.task)
        gain = pace.samples_per_s / one.samples_per_s if one else None
        cells = [pace.task, pace.scaling, str(pace.ranks), f"{pace.rows:,}", f"{1e3 * pace.seconds:,.2f}"]
        cells += [f"{pace.samples_per_s:,.0f}", "–" if gain is None else f"{gain:.2f}"]
        cells += ["–" if gain is None else f"{gain / pace.ranks:.0%}"]
        cells += [f"{1e3 * pace.all_sum_seconds:.3f}" if pace.ranks > 1 else "–", f"{4e-6 * pace.gradients:.2f}"]
        cells += [f"{pace.loss:.4f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    run_command(main)
