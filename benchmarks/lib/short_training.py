"""What a short training tells of a machine: its pace, its memory, and whether it learns."""

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
    """A training that was stopped, or came to its end."""

    task: str
    samples: int
    samples_per_s: float
    """Median over reports but the first, in which kernels may be built."""
    peak_gb: float
    first_loss: float
    validation: dict | None
    """The last one, if there was any."""
    solved: bool


def read(path: Path, task: str) -> ShortTraining | None:
    """What the run folder at ``path`` tells; None where no step was reported."""
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
    """Rows of Markdown.

    Args:
        trainings: what to show.
        whole: whether they ran by the default recipes' own settings, which then tell how long all of these take.
    """
    rows = ["| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|"]
    for one in trainings:
        check, total = one.validation, RECIPES[one.task]["default"].training.samples
        scores = f"loss {check['loss']:.3f}, accuracy {check['accuracy']:.1%}" if check else "not reached"
        if one.solved:
            expected = "solved"
        elif whole and one.task != "copy":  # whose pace changes with its stages
            expected = f"{duration(total / one.samples_per_s)} for {total:,} samples"
        else:
            expected = "–"
        cells = f"{one.samples:,}", f"{one.samples_per_s:,.1f}", f"{one.peak_gb:.3f}", f"{one.first_loss:.3f}"
        rows.append("| " + " | ".join((one.task, *cells, scores, expected)) + " |")
    return rows
