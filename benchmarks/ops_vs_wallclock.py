"""Does counting operations predict time? The paper's r(4dlk + 2ld²), and two better counts, against the clock.

    python benchmarks/ops_vs_wallclock.py                    # five minutes, any machine
    python benchmarks/ops_vs_wallclock.py --shapes image --batches 1 8 64 --seconds 600

Sweeps the paper's shapes over batch sizes, forward and training step, and holds three counts against the time:
the paper's, the true multiply-adds of dense windows, and those really executed. It measures what the machine can
do at best, and fits time = launches + multiply-adds / rate + bytes / bandwidth. Ends with a table, an answer in
words, a picture and one JSON line. Each model runs in a process of its own: one that is killed costs its own points.
"""

import json
import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mlx_rtx import backend
from mlx_rtx.commands import parse, run_command
from mlx_rtx.errors import require
from mlx_rtx.files import write_whole

from ceilings import measure_ceilings
from report import conclude, picture, table, words
from sweep import Point, call_group, groups


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Time and memory of the paper's shapes over batch sizes, against counts of operations."""

    shapes: tuple[Literal["image", "text", "copy"], ...] = ("image", "text", "copy")
    """Shapes of the paper to run."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Batch sizes, from the smallest on as far as time and memory allow."""
    seconds: float = 240.0
    """Time for all points together, about."""
    memory: float = 0.5
    """Share of the machine's memory that a point may be expected to take."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require(bool(self.batches) and min(self.batches) >= 1, f"batches={self.batches}: must be at least 1 each")
        require(bool(self.shapes), "shapes: name at least one")
        require(self.seconds > 0, f"seconds={self.seconds}: must be above 0")
        require(0 < self.memory <= 1, f"memory={self.memory}: must be above 0 and at most 1")


def main(arguments: list[str]) -> None:
    """Run the sweep and say what came of it."""
    sweep = parse(Sweep, arguments, "python benchmarks/ops_vs_wallclock.py")
    started = time.perf_counter()
    environment, ceilings = backend.environment(), measure_ceilings()
    print(f"device: {environment['device_name']} ({environment['device']}), mlx {environment['versions']['mlx']}")
    print(
        f"at best: {ceilings.multiply_adds_per_s / 1e9:,.0f} G multiply-adds/s, "
        f"{ceilings.bytes_per_s / 1e9:,.1f} GB/s, {ceilings.launches_per_s / 1e3:,.0f} k launches/s"
    )
    todo, points, memory_gb = groups(sweep.shapes), [], sweep.memory * backend.memory_gb()
    print(f"{len(todo)} models and modes, about {sweep.seconds / 60:.0f} min", flush=True)
    for i, group in enumerate(todo):
        left = sweep.seconds - (time.perf_counter() - started)
        print(f"{group}:", end="", flush=True)
        for result in call_group(group, sweep.batches, max(left / (len(todo) - i), 1.0), memory_gb):
            if isinstance(result, Point):
                points.append(result)
                print(f" {result.batch}: {1e3 * result.seconds:,.0f} ms", end="", flush=True)
            else:
                print(f" ({result})", end="")
        print()
    require(len(points) > 3, "sweep: fewer than four points came back; give it more --seconds or --memory")
    answer = conclude(points)
    name = "-".join(re.findall("[a-z0-9]+", str(environment["device_name"]).lower()))
    out = sweep.out or Path(__file__).parent / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment, "ceilings": asdict(ceilings), "answer": asdict(answer)}
    text = json.dumps({**report, "points": [asdict(point) for point in points]}, indent=1) + "\n"
    write_whole(out / "ops_vs_wallclock.json", lambda path: path.write_text(text))
    write_whole(out / "ops_vs_wallclock.png", partial(picture(points, answer).savefig, dpi=150))
    print("", table(points), "", words(answer), "", f"report and picture: {out}", sep="\n")
    print(json.dumps(report["answer"]))


if __name__ == "__main__":
    run_command(main)
