"""Sequence lengths: the picture of the loss against the length, and of α during training."""

from pathlib import Path
from typing import Any

from mlx_rtx.plots.figures import COLOURS, new_axes
from mlx_rtx.training.log import read_lines

from reproduction.lengths_rows import FARTHER, LENGTHS, ROWS, TEXTS
from reproduction.summary import Entry, kept_folders, of_metric

LOOKS: dict[str, Any] = {
    "shakespeare": {"color": COLOURS[0], "ls": "-", "marker": "o"},
    "shakespeare-stateful": {"color": COLOURS[0], "ls": "--", "marker": "s"},
    "repeats": {"color": COLOURS[1], "ls": "-", "marker": "o"},
    "repeats-stateful": {"color": COLOURS[1], "ls": "--", "marker": "s"},
    "near": {"color": COLOURS[2], "ls": "-"},
    **{f"near-{after}": {"color": COLOURS[3 + i], "ls": "-"} for i, after in enumerate(FARTHER)},
}


def draw(entries: list[Entry], results: Path) -> Any:
    """Draw the loss on the held-out stream against the length, and α against the characters trained on, of each run."""
    figure, axes = new_axes(1, 2)
    over_length, over_training = axes.flat
    losses = of_metric(entries, "stream_loss")
    for text in TEXTS:
        line = [(L, losses[key]["mean"]) for L in LENGTHS if (key := (f"length-{L}", text)) in losses]
        if line:
            over_length.plot(*zip(*line, strict=True), label=text, lw=1.4, ms=4, **LOOKS[text])
    for row in ROWS:
        if row.recipe in LOOKS:
            look = LOOKS[row.recipe]
            for folder in kept_folders(results, row):
                over_training.plot(*alphas(folder), lw=0.8, color=look["color"], ls=look["ls"], label=row.recipe)
    near = {label: line for line in over_training.lines if (label := line.get_label()) not in TEXTS}
    if near:
        over_training.legend(handles=list(near.values()), fontsize=8)
    over_length.set_xscale("log", base=2)
    over_length.set_xticks(LENGTHS, [f"{L:,}" for L in LENGTHS])
    over_length.set_xlabel("characters per sequence")
    over_length.set_ylabel("held-out loss (nats per character)")
    over_length.legend(fontsize=8)
    over_training.set_xlabel("characters trained on")
    over_training.set_ylabel("α")
    return figure


def alphas(folder: Path) -> tuple[list[int], list[float]]:
    """Return the characters so far and α at each report of a run."""
    reports = [event for event in read_lines(folder / "metrics.jsonl") if event["kind"] == "train"]
    return [event["length"] * event["samples"] for event in reports], [event["alpha"][0] for event in reports]
