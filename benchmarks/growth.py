"""Growth of time and memory with length and width: the recurrent model and a regular layer of the same sizes.

    python benchmarks/growth.py --seconds 300

Measures models of the copy task (block positions) with every output read, on one sequence of 128 to 131,072 tokens, and
on 1,024 tokens at widths from 48 to 768: forward pass and training step, in segments of 8 blocks. Sizes that are
predicted not to fit or to take too long are left out. Prints a table, the exponents in words and one line of JSON, and
draws a picture.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx_rtx.plots.figures import COLOURS, DASHES, doubling, new_axes
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import add_picture, write_report

from lib.budget import Budget
from lib.machine_results import results_folder
from lib.sweep import Group, Point, call_group, own_size
from lib.sweep_summary import along_axis, by_group

SUBJECT, SHORT = "long", 1024  # length of the points over width
LENGTHS, WIDTHS = tuple(2**i for i in range(7, 18)), (48, 96, 192, 384, 768)
TAIL = 8  # exponents are measured between an eighth of the largest length and the largest length


@dataclass(frozen=True, kw_only=True)
class GrowthCommand(Budget):
    """Measure time and memory over length and width."""

    lengths: tuple[int, ...] = LENGTHS
    """Lengths in tokens."""
    widths: tuple[int, ...] = WIDTHS
    """Model widths, multiples of the 6 heads."""
    batch: int = 1
    """Sequences per step."""
    seconds: float = 300.0
    """Approximate time for all points together."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "batch")
        require_at_most(self, batch=2**20)
        self.require_sizes("lengths", "widths")


def main(arguments: list[str]) -> None:
    """Measure, and print how time and memory grow."""
    growth = parse(GrowthCommand, arguments, "python benchmarks/growth.py")
    print(f"device: {backend.device()}")
    points, left_out = measure(growth)
    print("", table(points, left_out), "", sep="\n")
    exponents = grows(points)
    print(words(exponents, points))
    folder = results_folder(growth.out)
    write_report(
        folder, "growth", {"exponents": exponents, "left_out": left_out, "points": [asdict(point) for point in points]}
    )
    add_picture(folder, "growth", lambda: picture(points))
    print(f"\nreport: {folder}")
    print(json.dumps(exponents))


def measure(growth: GrowthCommand) -> tuple[list[Point], list[str]]:
    """Return all points, and a line for each one that was left out."""
    end = time.perf_counter() + growth.seconds
    own = own_size(SUBJECT, growth.batch)
    sizes = [replace(own, length=length) for length in growth.lengths]
    sizes += [replace(own, length=SHORT, dim=width) for width in growth.widths]
    # the regular layer takes seconds or does not fit, so it is first and leaves its time to the recurrent model
    groups = [Group(SUBJECT, model, 1, mode) for model in ("regular", "recurrent") for mode in ("forward", "training")]
    points: list[Point] = []
    left_out: list[str] = []
    for i, group in enumerate(groups):
        print(f"{group}:", end="", flush=True)
        seconds = max((end - time.perf_counter()) / (len(groups) - i), 1.0)
        for result in call_group(group, list(dict.fromkeys(sizes)), seconds, growth.memory * backend.memory_gb()):
            if isinstance(result, Point):
                points.append(result)
                print(" .", end="", flush=True)
            else:
                left_out.append(f"{group}: {result}")
        print()
    require(len(points) > 1, "growth: fewer than two points were measured; give it more --seconds or --memory")
    return points, left_out


def over(points: list[Point], axis: str) -> dict[Group, list[Point]]:
    """Return each group's points along ``length`` at the model's own width, or along ``dim`` at 1,024 tokens."""
    own = own_size(SUBJECT)
    fixed = {"dim": own.dim} if axis == "length" else {"length": SHORT}
    here = [point for point in points if all(getattr(point.size, name) == value for name, value in fixed.items())]
    return {group: along_axis(line, axis) for group, line in by_group(here).items()}


def grows(points: list[Point]) -> dict[str, dict[str, float]]:
    """Return exponents of time and memory per model and mode, up to its largest length from an eighth of it."""
    found = {}
    for group, line in over(points, "length").items():
        last = line[-1]
        first = next(point for point in line if point.size.length * TAIL >= last.size.length)
        if first is not last:
            factor = math.log(last.size.length / first.size.length)
            found[str(group)] = {
                "from": first.size.length,
                "to": last.size.length,
                "time": math.log(last.seconds / first.seconds) / factor,
                "memory": math.log(last.peak_gb / first.peak_gb) / factor,
            }
    return found


def words(exponents: dict[str, dict[str, float]], points: list[Point]) -> str:
    """Return the growth in words, and the length from which the recurrent model is faster."""
    sentences = [
        f"{name}: from {e['from']:,} to {e['to']:,} tokens time grows as L^{e['time']:.2f}, "
        f"memory as L^{e['memory']:.2f}"
        for name, e in exponents.items()
    ]
    lines = over(points, "length")
    for mode in ("forward", "training"):
        regular, recurrent = (
            {p.size.length: p.seconds for p in lines.get(Group(SUBJECT, model, 1, mode), [])}
            for model in ("regular", "recurrent")
        )
        faster = [length for length in regular.keys() & recurrent if recurrent[length] < regular[length]]
        text = f"from {min(faster):,} tokens on" if faster else "at no length that was measured for both"
        sentences.append(f"{mode}: the recurrent model is faster {text}")
    return "\n".join(sentences)


def table(points: list[Point], left_out: list[str]) -> str:
    """Return a table of milliseconds and gigabytes, one row per length or width, then what was left out."""
    rows = []
    for axis in ("length", "dim"):
        lines = over(points, axis)
        rows.append(f"{axis:>9} " + " ".join(f"{f'{g.model}, {g.mode}':>24}" for g in lines))
        for value in sorted({getattr(p.size, axis) for line in lines.values() for p in line}):
            cells = []
            for line in lines.values():
                here = [p for p in line if getattr(p.size, axis) == value]
                cells.append(f"{1e3 * here[0].seconds:,.1f} ms {here[0].peak_gb:.3f} GB" if here else "–")
            rows.append(f"{value:>9,} " + " ".join(f"{cell:>24}" for cell in cells))
    return "\n".join([*rows, *left_out])


def picture(points: list[Point]) -> Any:
    """Draw time and memory over length, and time over width."""
    figure, axes = new_axes(1, 3)
    panels = (("length", "length L (tokens)", "seconds"), ("length", "length L (tokens)", "peak_gb"))
    for panel, (axis, title, field) in zip(axes[0], (*panels, ("dim", "width D", "seconds")), strict=True):
        for group, line in over(points, axis).items():
            look = {
                "color": COLOURS[group.model == "regular"],
                "ls": DASHES[group.mode == "forward"],
                "marker": "o",
                "ms": 3,
            }
            across, up = [getattr(p.size, axis) for p in line], [getattr(p, field) for p in line]
            panel.loglog(across, up, label=f"{group.model}, {group.mode}", **look)
        doubling(panel, (getattr(p.size, axis) for line in over(points, axis).values() for p in line))
        panel.set_xlabel(title)
        panel.set_ylabel("seconds per step" if field == "seconds" else "peak memory (GB)")
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run_command(main)
