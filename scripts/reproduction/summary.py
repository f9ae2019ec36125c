"""What a table's runs came to: a mean over seeds and a 95 % interval for each metric of each row, in ``summary.json``.

Over two seeds and more the interval is Student's t of the seeds' values. With one seed it is about what was scored
alone, not about training: Wilson's interval of a share, 1.96 standard errors of a loss.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import write_json
from mlx_rtx.support.reports import make_folder
from mlx_rtx.training.evaluation import interval

from reproduction.rows import ROWS, Row, is_share, scorings
from reproduction.runs import FINAL, together

SUMMARY = "summary.json"


def require_scipy() -> Any:
    """`scipy.stats`, which has Student's t; said in one line where it is missing."""
    try:
        from scipy import stats
    except ImportError:
        raise UserError("reproduce: needs SciPy for intervals; pip install 'mlx-rtx[scaling]'") from None
    return stats


def summarise(results: Path, table: str) -> list[dict[str, Any]]:
    """The entries of a table's ``summary.json``, from what is kept below ``results``; rows without runs have none."""
    entries = []
    for row in ROWS:
        if row.table == table and (finals := read_finals(results, row)):
            names = [name for scoring in scorings(row) for name in scoring.metrics]
            entries += [_entry(row, name, finals, names[0]) for name in names]
    return entries


def write_summary(results: Path, table: str) -> None:
    """Write a table's ``summary.json`` anew if any run of it is kept."""
    if entries := summarise(results, table):
        make_folder(results / table)
        write_json(results / table / SUMMARY, entries)


def read_summary(results: Path, table: str) -> list[dict[str, Any]]:
    """The entries of a table's ``summary.json``; none where it is missing."""
    file = results / table / SUMMARY
    return json.loads(file.read_text()) if file.exists() else []


def kept_folders(results: Path, row: Row) -> list[Path]:
    """The folders of a row's complete runs, by seed."""
    first = results / row.folder(0)
    start = first.name.removesuffix("0")
    found = {path.parent.name.removeprefix(start): path.parent for path in first.parent.glob(f"{start}*/{FINAL}")}
    return [found[seed] for seed in sorted(filter(str.isdecimal, found), key=int)]


def read_finals(results: Path, row: Row) -> list[dict[str, Any]]:
    """What is kept of a row's complete runs, by seed."""
    return [json.loads((path / FINAL).read_text()) for path in kept_folders(results, row)]


def _entry(row: Row, metric: str, finals: list[dict[str, Any]], first: str) -> dict[str, Any]:
    """One line of a summary."""
    mean, low, high = interval_of([final["metrics"][metric] for final in finals], is_share(metric))
    return {
        "row": row.row,
        "recipe": row.recipe,
        "metric": metric,
        "mean": mean,
        "low": low,
        "high": high,
        "seeds": [final["seed"] for final in finals],
        "paper": row.paper if metric == first else None,
        "alpha": _mean_alpha(finals),
        "parameters": finals[0]["parameters"],
        "samples": round(statistics.mean(final["samples"] for final in finals)),
        "revision": together(final["revision"] for final in finals),
        "device": together(final["device"] for final in finals),
        "chosen_on": finals[0]["chosen_on"],
    }


def _mean_alpha(finals: list[dict[str, Any]]) -> float | None:
    """The mean α at the end of training, over layers and seeds; None of models that have none."""
    alphas = [alpha for final in finals for alpha in final["alpha"]]
    return round(statistics.mean(alphas), 4) if alphas else None


def interval_of(scores: list[dict[str, Any]], share: bool) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval of one score a seed; of nothing where one is no number.

    Args:
        scores: ``value``, its standard error ``se``, ``sequences`` and ``answers`` of each seed.
        share: whether they are shares of 1, else losses.
    """
    values = [score["value"] for score in scores]
    if None in values:
        return None, None, None
    mean = statistics.mean(values)
    if len(values) == 1 and share:
        low, high = interval(mean, _independent(scores[0]))
    else:
        quantile = require_scipy().t.ppf(0.975, len(values) - 1) if len(values) > 1 else 1.96
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else scores[0]["se"] or 0.0
        low, high = mean - float(quantile) * error, mean + float(quantile) * error
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return round(mean, 6), round(low, 6), round(high, 6)


def _independent(score: dict[str, Any]) -> int:
    """How many independent answers are worth as much as those of a share.

    Answers of one sequence hang together. Their standard error over sequences is that of so many independent ones;
    they are at least as many as the sequences, and at most all of them.
    """
    sequences, answers, p, se = (score[name] for name in ("sequences", "answers", "value", "se"))
    if answers == sequences or not se:
        return sequences
    return round(min(max(p * (1 - p) / se**2, sequences), answers))
