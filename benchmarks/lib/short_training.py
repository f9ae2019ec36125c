"""Results of a short training: its speed, its peak memory and its scores."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.plan import duration
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.recipes import RECIPES

TITLES = ("training", "samples", "samples/s", "peak GB", "first loss", "validation", "the whole recipe at this pace")


@dataclass(frozen=True)
class ShortTraining:
    """A training that was stopped or has finished."""

    task: str
    samples: int
    samples_per_s: float
    """Median over all reports except the first, which may include the compilation of kernels."""
    peak_gb: float
    first_loss: float
    validation: dict | None
    """The last validation; None if there was none."""
    solved: bool


def read(path: Path, task: str) -> ShortTraining | None:
    """Read the results from the run folder at ``path``; None if it reported no step."""
    lines = read_lines(RunFolder(path).metrics)
    reports = [line for line in lines if line["kind"] == "train"]
    if not reports:
        return None
    checks = [line for line in lines if line["kind"] in ("validation", "final")]
    return ShortTraining(
        task=task,
        samples=reports[-1]["samples"],
        samples_per_s=statistics.median(report["samples_per_s"] for report in reports[1:] or reports),
        peak_gb=max(report["peak_gb"] for report in reports),
        first_loss=reports[0]["loss"],
        validation=checks[-1] if checks else None,
        solved=any(line["kind"] == "confirmation" and line["sequence_accuracy"] == 1 for line in lines),
    )


def table(trainings: list[ShortTraining], whole: bool) -> list[str]:
    """Return the rows of a Markdown table.

    Args:
        trainings: trainings to show.
        whole: whether they used the default recipes' own settings, so that the time of the whole recipe follows.
    """
    rows = ["| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|"]
    for one in trainings:
        check, total = one.validation, RECIPES[one.task]["default"].training.samples
        scores = f"loss {check['loss']:.3f}, accuracy {check['accuracy']:.1%}" if check else "not reached"
        if one.solved:
            expected = "solved"
        elif whole and one.task != "copy":  # the speed of copy changes with its stages
            expected = f"{duration(total / one.samples_per_s)} for {total:,} samples"
        else:
            expected = "–"
        cells = f"{one.samples:,}", f"{one.samples_per_s:,.1f}", f"{one.peak_gb:.3f}", f"{one.first_loss:.3f}"
        rows.append("| " + " | ".join((one.task, *cells, scores, expected)) + " |")
    return rows
