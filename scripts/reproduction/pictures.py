"""Figures 1 to 3 of the paper from the complete runs: thin lines for seeds, dashed lines for the paper's values.

As in the paper they show training and validation, against samples (1, 2) or operations by the paper's count (3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from mlx_rtx.plots.figures import COLOURS, new_axes
from mlx_rtx.plots.run_history import History, read_history

from reproduction.rows import ROWS, Row
from reproduction.summary import kept_folders

TRAINING, VALIDATION = COLOURS[5], COLOURS[1]
PAPER: Any = {"color": "0.2", "lw": 1, "ls": "--"}
PAPER_DASHES = ["--", ":", "-."]  # one per value if a picture has several


@dataclass(frozen=True)
class Curves:
    """The runs of one row, one per seed."""

    row: Row
    runs: list[History]
    paper_loss: float
    """Validation loss in the paper, nats."""

    @property
    def title(self) -> str:
        """Title with row, recipe and number of seeds."""
        return f"{self.row.row}, {self.row.recipe} ({len(self.runs)} seed{'s' if len(self.runs) > 1 else ''})"


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper."""

    title: str
    rows: dict[str, float]
    """{row, as ``table/row:recipe``: the paper's validation loss}."""
    over_operations: bool = False


FIGURES = {
    "figure1": PaperFigure(
        "Figure 1: grey CIFAR-10",
        {"table2/regular-4:paper": 1.68, "table2/recurrent:paper": 1.50, "table2/recurrent:default": 1.50},
    ),
    "figure2": PaperFigure(
        "Figure 2: curriculum training for selective copy",
        {"table4/selective-copy:paper": 0.036, "table4/selective-copy:default": 0.036},
    ),
    "figure3": PaperFigure(
        "Figure 3: tiny Shakespeare",
        {
            "table6/regular-1:paper": 1.58,
            "table6/regular-6:paper": 1.47,
            "table6/regular-6:nanogpt": 1.47,
            "table6/recurrent:paper": 1.47,
            "table6/recurrent:default": 1.47,
        },
        over_operations=True,
    ),
}


def read_curves(figure: PaperFigure, results: Path) -> tuple[list[Curves], list[Row]]:
    """Read the runs of a figure in ``results``; return them and the rows that have none."""
    rows = {f"{row.table}/{row.name}": row for row in ROWS}
    found, missing = [], []
    for name, paper_loss in figure.rows.items():
        if folders := kept_folders(results, rows[name]):
            found.append(Curves(rows[name], [read_history(folder) for folder in folders], paper_loss))
        else:
            missing.append(rows[name])
    return found, missing


def draw(figure: PaperFigure, curves: Sequence[Curves]) -> Any:
    """Draw a figure."""
    drawn = _over_operations(curves) if figure.over_operations else _over_samples(curves)
    drawn.suptitle(figure.title)
    return drawn


def _over_samples(curves: Sequence[Curves]) -> Any:
    """Draw loss above accuracy, one column per row of the table."""
    figure, axes = new_axes(2, len(curves), sharex="col", sharey="row")
    for (top, bottom), row in zip(axes.T, curves, strict=True):
        top.set_title(row.title, fontsize=11)
        for i, run in enumerate(row.runs):
            names = ("training", "validation") if i == 0 else (None, None)  # for the legend
            top.plot(run.samples, run.loss, color=TRAINING, lw=0.7, label=names[0])
            top.plot(run.validated, run.validation_loss, color=VALIDATION, lw=0.9, label=names[1])
            bottom.plot(run.validated, 100 * run.accuracy, color=VALIDATION, lw=0.9, label=names[1])
        _stages((top, bottom), row.runs[0])
        top.axhline(row.paper_loss, label=f"paper: {row.paper_loss:.3g}", **PAPER)
        if row.row.paper is not None:
            bottom.axhline(100 * row.row.paper, label=f"paper: {100 * row.row.paper:.3g} %", **PAPER)
        bottom.set_xlabel("samples" + (" (grey: noise tokens of each stage)" if row.runs[0].stages else ""))
        top.legend(fontsize=8)
        bottom.legend(fontsize=8, loc="lower right")
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("validation accuracy (%)")
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)
    return figure


def _stages(axes: tuple[Any, Any], run: History) -> None:
    """Mark the beginnings of a curriculum's stages, as in the first seed's run."""
    for at, noise in run.stages:
        for axis in axes:
            axis.axvline(at, color="0.75", lw=0.6, zorder=0)
        axes[0].annotate(
            f"{noise:,}", (at, 1), xycoords=("data", "axes fraction"), xytext=(2, -2), rotation=90,
            textcoords="offset points", va="top", fontsize=7, color="0.4",
        )  # fmt: skip


def _over_operations(curves: Sequence[Curves]) -> Any:
    """Draw training loss next to validation loss, one colour per row of the table."""
    figure, axes = new_axes(1, 2, sharex=True, sharey=True)
    for i, row in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        for j, run in enumerate(row.runs):
            label = row.title if j == 0 else None
            axes[0, 0].plot(run.operations, run.loss, color=colour, lw=0.9, label=label)
            axes[0, 1].plot(run.validated_operations, run.validation_loss, color=colour, lw=0.9, label=label)
    for value, dashes in zip(sorted({row.paper_loss for row in curves}), cycle(PAPER_DASHES), strict=False):
        axes[0, 1].axhline(value, label=f"paper: {value:.3g}", **PAPER | {"ls": dashes})
    for axis, name in zip(axes[0], ("training", "validation"), strict=True):
        axis.set_title(f"{name} loss", fontsize=11)
        axis.set_xlabel("operations of the run by the paper's count")
        axis.set_xscale("log")
    axes[0, 0].set_ylabel("loss (nats)")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return figure
