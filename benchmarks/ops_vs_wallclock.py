"""Does counting operations predict time? The paper's r(4dlk + 2ld²) and two more exact counts, against measured time.

    python benchmarks/ops_vs_wallclock.py                    # five minutes, any machine
    python benchmarks/ops_vs_wallclock.py --quick            # one minute: batch sizes only
    python benchmarks/ops_vs_wallclock.py --shapes image --batches 1 8 64 --blocks 16 32 --seconds 600

Sweeps the paper's shapes over batch sizes, and at batch 8 over lengths and block widths, for forward passes and
training steps; with --full or a given axis, over all combinations. It compares three counts with the time: the paper's,
the true multiply-adds of dense windows, and those actually executed. It also measures the machine's peak rates and fits
time as a sum of launches, multiply-adds and bytes, each times a constant. Prints a table, an answer in words and one
line of JSON, and draws two pictures. Each model runs in a separate process; if it is killed, only that size is lost.
"""

import itertools
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlx_rtx.model.config import ModelKind
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import add_picture, write_report
from mlx_rtx.support.typed import require_types

from lib.budget import Budget
from lib.ceilings import measure_ceilings
from lib.machine_results import reports, results_folder
from lib.sweep import Group, Point, Size, call_group, groups, own_size
from lib.sweep_summary import axes_picture, conclude, counts_picture, table, words

BATCHES, LENGTHS, BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (256, 512, 1024, 2048), (16, 32, 64, 128)
QUICK_BATCHES, ASIDE = (1, 8, 64), 8  # the latter is the batch for points along lengths and blocks
SECONDS = {"quick": 60.0, "default": 270.0, "full": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Sweep(Budget):
    """Compare time and memory of the paper's shapes with counts of operations."""

    shapes: tuple[Literal["image", "text", "copy"], ...] = ("image", "text", "copy")
    """Shapes of the paper to run."""
    models: tuple[ModelKind, ...] = ("recurrent", "regular")
    """Models to run; regular ones have the numbers of layers that the paper compares."""
    modes: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """Modes to run: forward pass, training step."""
    batches: tuple[int, ...] = ()
    """Batch sizes; by default 1, 2, 4 … 256."""
    lengths: tuple[int, ...] = ()
    """Lengths in tokens; by default the paper's, and at batch 8 also 256 … 2,048."""
    blocks: tuple[int, ...] = ()
    """Block widths of recurrent models; by default the paper's, and at batch 8 also 16 … 128."""
    widths: tuple[int, ...] = ()
    """Model widths, multiples of the heads (4 for images, otherwise 6); by default the paper's."""
    quick: bool = False
    """One minute: three batch sizes, the paper's lengths and blocks."""
    full: bool = False
    """One hour: all combinations of batch, length and block."""
    kernels: bool = False
    """Time the fused kernels if available; launches and bytes are then still counted for plain operations."""
    seconds: float | None = None
    """Approximate time for all points together; by default 270, 60 with --quick, 3,600 with --full."""

    def __post_init__(self):
        require_types(self)
        super().__post_init__()
        for name in ("batches", "lengths", "blocks", "widths"):
            if getattr(self, name):
                self.require_sizes(name)
        for name in ("shapes", "models", "modes"):
            require(bool(getattr(self, name)), f"{name}: name at least one")
        require(not (self.quick and self.full), "quick, full: choose one of the two")

    @property
    def time(self) -> float:
        """Seconds for all points."""
        return self.seconds or SECONDS["quick" if self.quick else "full" if self.full else "default"]

    def sizes(self, group: Group) -> list[Size]:
        """Return the sizes at which to measure a group."""
        own, recurrent = own_size(group.subject), group.model == "recurrent"
        batches = self.batches or (QUICK_BATCHES if self.quick else BATCHES)
        lengths = self.lengths or ((own.length, *LENGTHS) if self.full else (own.length,))
        blocks = self.blocks or ((own.block, *BLOCKS) if self.full else (own.block,))
        found = itertools.product(batches, lengths, blocks if recurrent else (own.block,), self.widths or (own.dim,))
        sizes = [Size(*each) for each in found]
        if not (self.batches or self.lengths or self.blocks or self.widths or self.quick or self.full):
            sizes += [replace(own, batch=ASIDE, length=length) for length in LENGTHS]
            sizes += [replace(own, batch=ASIDE, block=block) for block in BLOCKS if recurrent]
        return list(dict.fromkeys(sizes))


def main(arguments: list[str]) -> None:
    """Run the sweep and print the results."""
    sweep = parse(Sweep, arguments, "python benchmarks/ops_vs_wallclock.py")
    started = time.perf_counter()
    if not sweep.kernels:
        os.environ["MLX_RTX_KERNELS"] = "0"  # for the worker processes, and the report's header
    ceilings = measure_ceilings()
    print(f"device: {backend.device()}")
    print(
        f"peak rates: {ceilings.multiply_adds_per_s / 1e9:,.0f} G multiply-adds/s, "
        f"{ceilings.bytes_per_s / 1e9:,.1f} GB/s, {ceilings.launches_per_s / 1e3:,.0f} k launches/s"
    )
    todo, memory_gb = groups(sweep.shapes, sweep.models, sweep.modes), sweep.memory * backend.memory_gb()
    points: list[Point] = []
    left_out: list[str] = []
    print(f"{len(todo)} models and modes, about {sweep.time / 60:.0f} min", flush=True)
    for i, group in enumerate(todo):
        print(f"{group}:", end="", flush=True)
        without: list[str] = []
        left = sweep.time - (time.perf_counter() - started)
        for result in call_group(group, sweep.sizes(group), max(left / (len(todo) - i), 1.0), memory_gb):
            if isinstance(result, Point):
                points.append(result)
                print(" .", end="", flush=True)
            else:
                without.append(result)
        print(f" ({len(without)} sizes not measured; the first: {without[0]})" if without else "")
        left_out += [f"{group}: {text}" for text in without]
    require(len(points) > 3, "sweep: fewer than four points were measured; give it more --seconds or --memory")
    answer, folder = conclude(points, ceilings), results_folder(sweep.out)
    report = {"ceilings": asdict(ceilings), "answer": asdict(answer), "left_out": left_out}
    write_report(folder, "ops_vs_wallclock", {**report, "points": [asdict(point) for point in points]})
    add_picture(folder, "ops_vs_wallclock", lambda: counts_picture(points, answer))
    add_picture(folder, "ops_vs_wallclock_axes", lambda: axes_picture(points))
    print("", table(points, answer), "", words(answer), "", all_machines(), "", f"report: {folder}", sep="\n")
    print(json.dumps(report["answer"]))


def all_machines() -> str:
    """Return a table of the reports in benchmarks/results, one row per machine."""
    titles = ("G mult-adds/s", "GB/s", "k launches/s", "R² paper", "R² true", "R² exec.", "R² fit")
    rows = [f"{'machine':24} " + " ".join(f"{title:>13}" for title in titles)]
    for machine, report in reports("ops_vs_wallclock").items():
        ceilings, answer = report["ceilings"], report["answer"]
        cells = [1e-9 * ceilings["multiply_adds_per_s"], 1e-9 * ceilings["bytes_per_s"]]
        cells += [1e-3 * ceilings["launches_per_s"], *answer["r2"].values(), answer["fit"]["r2"]]
        texts = [f"{cell:,.0f}" for cell in cells[:3]] + [f"{cell:.3f}" for cell in cells[3:]]
        rows.append(f"{machine:24} " + " ".join(f"{text:>13}" for text in texts))
    return "\n".join(rows)


if __name__ == "__main__":
    run_command(main)
