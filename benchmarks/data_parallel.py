"""What several ranks of one machine gain: data-parallel trainings by the default recipes, on a GPU each.

    python benchmarks/data_parallel.py --seconds 150

Steps of copy, image and text on random tokens: as many sequences to a rank as the recipe has (weak scaling), or to a
step (strong scaling), beside one rank with its share of them, and beside the exchange of a gradient by itself. Medians.
Ranks are started here, by MLX's NCCL on CUDA, by its ring on a CPU; those that hang are ended. Ends with a table in
Markdown, which lies beside the report, and one line of JSON.
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
MARGIN = 0.9  # of the time: after that ranks begin nothing new
FIRST = 0.92  # of the time: what ranks may take that measure all; the rest is for fewer, should they fail
QUICK = Effort(trials=3, steps=2, warm_up=1, exchanges=5, small=True)


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The pace of trainings by several ranks."""

    tasks: tuple[str, ...] = ("copy", "image", "text")
    """Tasks, by their default recipes."""
    ranks: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks; those that are more than there are GPUs, or cores, are left out."""
    seconds: float | None = None
    """Time for all together, at most; if not given 150, or 60 with --quick."""
    quick: bool = False
    """Tiny sizes and few steps, which show only that all works."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require_each(self, "ranks", least=1, most=64)
        require(self.seconds is None or self.seconds > 0, f"seconds={self.seconds}: must be above 0")
        unknown = [task for task in self.tasks if task not in RECIPES]
        require(bool(self.tasks) and not unknown, f"tasks={unknown}: must be of {', '.join(RECIPES)}")


def main(arguments: list[str]) -> None:
    """Measure, and say what more ranks gain."""
    command = parse(DataParallel, arguments, "python benchmarks/data_parallel.py")
    by: Backend = "nccl" if mx.cuda.is_available() else "ring"
    there = mx.device_count(mx.gpu) if by == "nccl" else (os.cpu_count() or 1)
    sizes = sorted(n for n in set(command.ranks) | {1} if n <= there)
    print(f"device: {backend.device()}; ranks {', '.join(map(str, sizes))}, of {there}, by {by}", flush=True)
    effort = QUICK if command.quick else Effort()
    todo = [
        point
        for task in command.tasks
        for point in points(task, sizes, settings_of(task, effort.small)[0].training.batch)
    ]
    todo.sort(key=lambda point: point.scaling == "alone")  # which explains the others, and can be done without
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
    """All paces, and a line for each that is missing.

    The largest number of ranks measures the smaller ones as parts of it, where the backend has parts: so kernels are
    built once. What it leaves is measured by as many ranks of their own.
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
        said = run_ranks([*WORKER, json.dumps(request)], size, by, share, BENCHMARKS)
        if said.failure:
            left_out.append(f"{size} ranks: {said.failure}")
        for line in said.out.splitlines():
            if line.startswith('{"pace"'):
                found.append(Pace(**json.loads(line)["pace"]))
            elif line.startswith('{"left_out"'):
                left_out.append(json.loads(line)["left_out"])
    return found, left_out


def point_of(pace: Pace) -> Point:
    """What was measured."""
    return Point(task=pace.task, ranks=pace.ranks, rows=pace.rows, scaling=pace.scaling)


def one_rank(paces: Sequence[Pace], task: str) -> Pace | None:
    """The pace of the recipe by one rank."""
    return next((pace for pace in paces if pace.task == task and pace.ranks == 1 and pace.scaling == "strong"), None)


def gains(paces: Sequence[Pace]) -> dict[str, Any]:
    """Of each task and kind of scaling how many times as many samples a second more ranks bring than one."""
    return {
        f"{pace.task} {pace.scaling} {pace.ranks}": round(pace.samples_per_s / one.samples_per_s, 3)
        for pace in paces
        if pace.ranks > 1 and (one := one_rank(paces, pace.task))
    }


def table(paces: Sequence[Pace]) -> str:
    """Rows of Markdown: by task and kind of scaling, in order of ranks."""
    titles = ("task", "scaling", "ranks", "sequences a step", "ms a step", "samples/s", "× one rank", "efficiency")
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
