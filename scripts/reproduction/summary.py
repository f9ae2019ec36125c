"""Summarise a table's runs in ``summary.json``: mean over seeds and 95 % interval of each metric of each row.

With two or more seeds the interval is Student's t interval of the seeds' values. With one seed it covers only the
scored data, not the variation between trainings: Wilson's interval for a fraction, 1.96 standard errors for a loss, and
no interval for the loss of a single sequence, which has no standard error.
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
Entry = dict[str, Any]  # an entry of summary.json


def require_scipy() -> Any:
    """Return `scipy.stats`, for Student's t; raise UserError if SciPy is not installed."""
    try:
        from scipy import stats
    except ImportError:
        raise UserError("reproduce: needs SciPy for intervals; pip install 'mlx-rtx[scaling]'") from None
    return stats


def summarise(results: Path, table: str) -> list[Entry]:
    """Return the entries of a table's ``summary.json`` from the runs in ``results``; rows without runs have none."""
    entries = []
    for row in ROWS:
        if row.table == table and (finals := read_finals(results, row)):
            names = [name for scoring in scorings(row) for name in scoring.metrics]
            entries += [_entry(row, name, finals, names[0]) for name in names]
    return entries


def write_summary(results: Path, table: str) -> None:
    """Rewrite a table's ``summary.json`` if it has any complete run."""
    if entries := summarise(results, table):
        make_folder(results / table)
        write_json(results / table / SUMMARY, entries)


def read_summary(results: Path, table: str) -> list[Entry]:
    """Read the entries of a table's ``summary.json``; an empty list if it is missing."""
    file = results / table / SUMMARY
    return json.loads(file.read_text()) if file.exists() else []


def of_metric(entries: list[Entry], metric: str) -> dict[tuple[str, str], Entry]:
    """Return a metric's entries by row and recipe."""
    return {(entry["row"], entry["recipe"]): entry for entry in entries if entry["metric"] == metric}


def kept_folders(results: Path, row: Row) -> list[Path]:
    """Return the folders of a row's complete runs, sorted by seed."""
    first = results / row.folder(0)
    start = first.name.removesuffix("0")
    found = {path.parent.name.removeprefix(start): path.parent for path in first.parent.glob(f"{start}*/{FINAL}")}
    return [found[seed] for seed in sorted(filter(str.isdecimal, found), key=int)]


def read_finals(results: Path, row: Row) -> list[dict[str, Any]]:
    """Read the ``final.json`` of a row's complete runs, sorted by seed."""
    return [json.loads((path / FINAL).read_text()) for path in kept_folders(results, row)]


def _entry(row: Row, metric: str, finals: list[dict[str, Any]], first: str) -> Entry:
    """Return one entry of a summary."""
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
    """Return the mean α at the end of training over layers and seeds; None for models without α."""
    alphas = [alpha for final in finals for alpha in final["alpha"]]
    return round(statistics.mean(alphas), 4) if alphas else None


def interval_of(scores: list[dict[str, Any]], share: bool) -> tuple[float | None, float | None, float | None]:
    """Return mean, low and high of the 95 % interval of one score per seed.

    All are None if a value is None; low and high are None for one loss without a standard error.

    Args:
        scores: ``value``, its standard error ``se``, ``sequences`` and ``answers``, one dict per seed.
        share: whether the scores are fractions; otherwise they are losses.
    """
    values = [score["value"] for score in scores]
    if None in values:
        return None, None, None
    mean = statistics.mean(values)
    if len(values) > 1:
        quantile = float(require_scipy().t.ppf(0.975, len(values) - 1))
        half = quantile * (statistics.stdev(values) / math.sqrt(len(values)))
        low, high = mean - half, mean + half
    elif share:
        low, high = interval(mean, _independent(scores[0]))
    elif (error := scores[0]["se"]) is not None:
        low, high = mean - 1.96 * error, mean + 1.96 * error
    else:
        return round(mean, 6), None, None
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return round(mean, 6), round(low, 6), round(high, 6)


def _independent(score: dict[str, Any]) -> int:
    """Return the effective number of independent answers behind a fraction.

    Answers of one sequence are correlated. The effective number is that with the same standard error as the one
    measured over sequences, limited to between the number of sequences and the number of answers.
    """
    sequences, answers, p, se = (score[name] for name in ("sequences", "answers", "value", "se"))
    if answers == sequences or not se:
        return sequences
    return round(min(max(p * (1 - p) / se**2, sequences), answers))
