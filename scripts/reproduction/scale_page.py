"""Scale: the picture of loss against parameters and against operations of training, and fits of Eq. 3."""

from pathlib import Path
from typing import Any

from mlx_rtx import train
from mlx_rtx.forecast.operations import training_ops
from mlx_rtx.plots.figures import COLOURS, new_axes
from mlx_rtx.scaling.regression import fit_losses
from mlx_rtx.training.log import read_lines

import numpy as np

from reproduction.row import Row
from reproduction.scale_rows import FITTED, LENGTH, ROWS, SHORTER, SIZES, TEXTS
from reproduction.summary import Entry, kept_folders, read_finals

LOOKS: dict[str, Any] = {
    "recurrent": {"color": COLOURS[0], "ls": "-", "marker": "o"},
    "regular": {"color": COLOURS[1], "ls": "--", "marker": "s"},
}


def draw(entries: list[Entry], results: Path) -> Any:
    """Draw one row of panels per text: the final held-out loss, and the validation losses during training."""
    texts = [text for text in TEXTS if any(entry["recipe"] == text for entry in entries)]
    figure, axes = new_axes(len(texts), 2, sharey="row")
    for (over_size, over_operations), text in zip(axes, texts, strict=True):
        found = {entry["row"]: entry for entry in entries if entry["recipe"] == text}
        for kind, look in LOOKS.items():
            line = [found[row] for row in SIZES if row.startswith(kind) and row in found]
            x, y = [entry["parameters"] for entry in line], [entry["mean"] for entry in line]
            over_size.plot(x, y, label=kind, lw=1.4, ms=4, **look)
        others = [entry for row, entry in found.items() if row not in SIZES]
        if others:
            x, y = [entry["parameters"] for entry in others], [entry["mean"] for entry in others]
            over_size.plot(x, y, "x", color=COLOURS[0], ms=4, label="recurrent, variants")
        for row in ROWS:
            if row.recipe == text and row.row in SIZES and row.row in found:
                operations, losses = curve(row, results)
                look = LOOKS[row.row.partition("-")[0]]
                over_operations.plot(operations, losses, lw=1, color=look["color"], ls=look["ls"])
                over_operations.annotate(row.row.rpartition("-")[2], (operations[-1], losses[-1]), fontsize=7)
        over_size.set_title(text)
        over_size.set_ylabel("held-out loss (nats per token)")
        over_size.set_xlabel("parameters")
        over_operations.set_xlabel("multiply-adds of training so far")
        over_operations.set_ylim(top=1.35 * max(entry["mean"] for entry in found.values()))
        for axis in (over_size, over_operations):
            axis.set_xscale("log")
            axis.minorticks_off()
        over_size.set_xticks([5e6, 15e6, 50e6], ["5M", "15M", "50M"])
        over_size.set_xlim(4e6, 7e7)
        over_size.legend(fontsize=8)
    return figure


def curve(row: Row, results: Path) -> tuple[list[float], list[float]]:
    """Return the multiply-adds so far and the loss at each validation of a row's first run."""
    settings = train.read_command(row.command.split())[0].settings
    shape = settings.task.shape
    config = settings.model_config(shape)
    of_one = training_ops(config, shape.length, shape.targets, settings.model, settings.training.segment)
    log = read_lines(kept_folders(results, row)[0] / "metrics.jsonl")
    points = [(of_one * event["samples"], event["loss"]) for event in log if event["kind"] == "validation"]
    operations, losses = zip(*points, strict=True)
    return list(operations), list(losses)


def fits(results: Path, resamples: int = 1000) -> dict[str, Any]:
    """Fit Eq. 3 to the losses of the three sizes at three numbers of tokens, for each kind of model.

    Args:
        results: folder of the results.
        resamples: number of bootstrap fits to resampled runs.

    Returns:
        {kind: the constants, γ and a with their 95 % intervals}; a kind is left out until all nine rows have a run.
    """
    fitted = [row for row in ROWS if row.row in SIZES and row.recipe in (FITTED, *SHORTER)]
    found = {}
    for kind in LOOKS:
        own = [row for row in fitted if row.row.startswith(kind)]
        finals = [read_finals(results, row) for row in own]
        if all(finals):
            runs = [final for of_row in finals for final in of_row]
            N = np.array([final["parameters"] for final in runs])
            D = np.array([final["samples"] * LENGTH for final in runs])
            losses = np.array([final["metrics"]["validation_loss"]["value"] for final in runs])
            found[kind] = fit_losses(N, D, losses, resamples).report()
    return found
