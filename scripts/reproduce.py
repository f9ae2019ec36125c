"""Reproduce the paper's tables and figures, and further experiments: each row from its training command.

    python scripts/reproduce.py table2 --seeds 0 1 2 --jobs 2
    python scripts/reproduce.py table4 --only copy:default --quick
    python scripts/reproduce.py tables

Each row is trained and scored once per seed with the package's commands, in run folders below ``runs/reproduce``. The
results are copied to ``results``, summarised and written to tables. Complete runs are not repeated; runs that were
stopped, by Ctrl-C or because time was up, are resumed.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlx_rtx.plan import duration
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most, require_each
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import make_folder, write_picture, write_report

import tyro

from reproduction import lengths_page, retrieval_page, scale_page
from reproduction.pictures import FIGURES, draw, read_curves
from reproduction.rows import choose, owner
from reproduction.runs import Run, RunFailed, Setting
from reproduction.summary import read_summary, require_scipy, write_summary
from reproduction.tables import TITLES, write_tables
from reproduction.workers import ROOT, Outcome, carry_out_all, visible_gpus

What = Literal["table2", "table4", "table6", "ablations", "retrieval", "scale", "lengths", "figures", "fits", "tables"]


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand:
    """Train, score and tabulate the rows of the paper's tables."""

    what: tyro.conf.Positional[tuple[What, ...]]
    """Tables to make; figures draws the existing runs, fits fits Eq. 3 to those of scale (minutes), tables rewrites the
    pages; these three train nothing."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds with which each row is run."""
    only: tuple[str, ...] = ()
    """Rows to make, as ROW or ROW:RECIPE; all if not given."""
    jobs: int | None = None
    """Number of parallel runs; by default --gpus, at least 1."""
    gpus: int = 0
    """Number of GPUs to distribute the jobs over, round robin; 0 for the default device."""
    seconds: float | None = None
    """Time after which runs save and stop; a later call resumes them."""
    samples: int | None = None
    """Samples of every training, instead of the row's own; in separate folders."""
    dry_run: bool = False
    """Print what would be run, and run nothing."""
    quick: bool = False
    """Train tiny models on few samples, to test all steps in minutes; in separate folders."""
    runs: Path = Path("runs", "reproduce")
    """Folder of the run folders, and of the results with --quick or --samples."""
    results: Path = ROOT / "results"
    """Folder of the results."""
    keep_mb: float = 1.0
    """Largest checkpoint to copy to the results, in MB."""
    revision: str | None = None
    """Source revision to record if this is not a git checkout."""

    def __post_init__(self):
        require(bool(self.what), f"WHAT: name at least one of {', '.join(get_args(What))}")
        require_each(self, "seeds", least=0, most=2**31 - 1)
        require(self.jobs is None or self.jobs >= 1, f"--jobs {self.jobs}: must be at least 1")
        require(self.gpus >= 0, f"--gpus {self.gpus}: must be 0 or above")
        require(self.samples is None or self.samples >= 1, f"--samples {self.samples}: must be at least 1")
        require(self.seconds is None or self.seconds > 0, f"--seconds {self.seconds}: must be above 0")
        require(self.keep_mb >= 0, f"--keep-mb {self.keep_mb}: must be 0 or above")
        require_at_most(self, jobs=1000, gpus=1000, samples=2**50)

    @property
    def setting(self) -> Setting:
        """Settings that all runs share; --quick and --samples have separate folders."""
        apart = (*(["quick"] if self.quick else []), *([f"samples-{self.samples}"] if self.samples else []))
        runs = self.runs.joinpath(*apart).resolve()
        return Setting(
            runs=runs,
            results=runs / "results" if apart else self.results.resolve(),
            quick=self.quick,
            samples=self.samples,
            keep_mb=self.keep_mb,
            revision=self.revision,
        )


def main(arguments: list[str]) -> None:
    """Run the command; exit with code 1 if a run failed, with 128 plus the signal's number if it was interrupted."""
    command = parse(ReproduceCommand, arguments, "python scripts/reproduce.py")
    require_scipy()
    setting = command.setting
    outcome = reproduce(command, setting)
    for table in TITLES:
        write_summary(setting.results, table)
    if "figures" in command.what:
        draw_figures(setting)
    if "fits" in command.what:
        found = scale_page.fits(setting.results)
        require(bool(found), "fits: needs a run of every size and recipe of scale for one kind of model")
        print(f"written: {write_report(setting.results / 'scale', 'fits', found)}")
    for path in write_tables(setting.results.parent, setting.results):
        print(f"written: {path}")
    if command.quick or command.samples:
        print("not the rows' results: --quick and --samples change what is trained")
    for name, reason in outcome.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if outcome.failed or outcome.interrupted:
        sys.exit(128 + outcome.interrupted if outcome.interrupted else 1)


def reproduce(command: ReproduceCommand, setting: Setting) -> Outcome:
    """Carry out the runs of the requested tables, all rows of a seed before the next seed."""
    tables = tuple(name for name in command.what if name in TITLES)
    if not tables:
        return Outcome()
    rows = choose(tables, command.only)
    runs = {run.name: run for seed in command.seeds for run in (Run(owner(row), seed, setting) for row in rows)}
    left: list[Run] = []
    refused: dict[str, str] = {}
    for run in runs.values():
        try:
            left += [] if run.complete() else [run]
        except RunFailed as error:
            refused[run.name] = str(error)
    if command.dry_run:
        for run in left:
            print(f"{run.name}: mlx_rtx.train {' '.join(run.flags)}")
    complete = len(runs) - len(left) - len(refused)
    print(f"{len(rows)} rows, {len(runs)} runs, {complete} of them already complete", flush=True)
    if command.dry_run:
        return Outcome(failed=refused)
    begun, gpus = time.perf_counter(), visible_gpus(command.gpus)
    outcome = carry_out_all(left, command.jobs or max(len(gpus), 1), gpus, command.seconds)
    outcome.failed |= refused
    counts = {"done": outcome.done, "left for a later call": outcome.stopped, "failed": list(outcome.failed)}
    text = ", ".join(f"{len(names)} {how}" for how, names in counts.items())
    print(f"{text}; took {duration(time.perf_counter() - begun)}", flush=True)
    return outcome


def draw_figures(setting: Setting) -> None:
    """Draw the paper's figures from the existing runs and print what is missing; draw the other tables' pictures."""
    pictures: dict[str, Any] = {}
    for name, figure in FIGURES.items():
        curves, missing = read_curves(figure, setting.results)
        for row in missing:
            print(f"{name}: no run yet of: python scripts/reproduce.py {row.table} --only {row.name}")
        if curves:
            pictures[name] = draw(figure, curves)
    if entries := read_summary(setting.results, "retrieval"):
        pictures["retrieval"] = retrieval_page.draw(entries)
    if entries := read_summary(setting.results, "scale"):
        pictures["scale"] = scale_page.draw(entries, setting.results)
    if entries := read_summary(setting.results, "lengths"):
        pictures["lengths"] = lengths_page.draw(entries, setting.results)
    for name, picture in pictures.items():
        print(f"written: {write_picture(make_folder(setting.results / 'figures'), name, picture)}")


if __name__ == "__main__":
    run_command(main)
