"""Results of retrieval, from their summary: a table of tasks by models, and accuracy against the number of pairs."""

from typing import Any

from mlx_rtx.plots.figures import COLOURS, DASHES, new_axes

from reproduction.retrieval_rows import MODELS, PAIRS
from reproduction.rows import is_share
from reproduction.summary import Entry, of_metric

MARKERS = "osDv^<>Px*"


def block(entries: list[Entry]) -> list[list[str]]:
    """Return the lines of the table, header first: one per task and metric, one column per model with any result."""
    models = [model for model in MODELS if any(entry["recipe"] == model for entry in entries)]
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        lines.setdefault((entry["row"], f"`{entry['metric']}`"), {})[entry["recipe"]] = _cell(entry)
    for entry in entries:
        if entry["alpha"] is not None:
            lines.setdefault((entry["row"], "mean α"), {})[entry["recipe"]] = f"{entry['alpha']:.2f}"
    tasks = list(dict.fromkeys(row for row, _ in lines))
    ordered = sorted(lines.items(), key=lambda line: tasks.index(line[0][0]))  # α after the metrics of its task
    rows = [[f"{row}, {name}", *(cells.get(model, "") for model in models)] for (row, name), cells in ordered]
    return [["task, metric", *models], *rows]


def draw(entries: list[Entry]) -> Any:
    """Draw accuracy of multi-query associative recall against the number of pairs, one line per model."""
    figure, axes = new_axes(1, 1)
    (axis,) = axes.flat
    named = of_metric(entries, "token_accuracy")
    for i, model in enumerate(MODELS):
        found = [(pairs, named[key]) for pairs in PAIRS if (key := (f"mqar-{pairs}", model)) in named]
        if found:
            pairs, shown = zip(*found, strict=True)
            middle, low, high = ([100 * entry[name] for entry in shown] for name in ("mean", "low", "high"))
            look: Any = {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "marker": MARKERS[i]}
            axis.plot(pairs, middle, label=model, lw=1.4, ms=5, **look)
            axis.fill_between(pairs, low, high, color=look["color"], alpha=0.12, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(PAIRS, [str(pairs) for pairs in PAIRS])
    axis.set_xlabel("key-value pairs in 256 tokens")
    axis.set_ylabel("values recalled (%)")
    axis.set_title("Multi-query associative recall")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _cell(entry: Entry) -> str:
    """Return a mean, and with several seeds half the width of its interval."""
    if entry["mean"] is None:
        return "not finite"
    scale, digits = (100, 1) if is_share(entry["metric"]) else (1, 3)
    mean = f"{scale * entry['mean']:.{digits}f}"
    if len(entry["seeds"]) == 1:
        return mean
    return f"{mean} ± {scale * (entry['high'] - entry['low']) / 2:.{digits}f}"
