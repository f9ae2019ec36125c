"""What the points of a sweep say: a table, an answer in words, a picture."""

from dataclasses import dataclass
from typing import Any

from mlx_rtx.figures import COLOURS, new_axes

import numpy as np
from fit import Fit, fit_time, proportional
from sweep import Group, Point

COUNTS = {"paper": "paper's r(4dlk+2ld²)", "true": "true multiply-adds", "executed": "executed multiply-adds"}


@dataclass(frozen=True)
class Answer:
    """How well each count predicts time, and what does."""

    r2: dict[str, float]
    """Of each count, times being proportional to it, over all points."""
    fit: Fit
    """Of launches, multiply-adds and bytes together."""
    arithmetic_batch: dict[str, float]
    """Per model and mode: the batch from which arithmetic and bytes take longer than launches."""
    image_ratio: dict[str, float]
    """Recurrent : regular with 4 layers on images, by each count, and by the clock at the largest common batch."""


def conclude(points: list[Point]) -> Answer:
    """Fit the points."""
    times = np.array([point.seconds for point in points])
    fit = fit_time(times, _work(points))
    batches = {}
    for group, rows in by_group(points).items():
        if len(rows) > 1:
            a, b = _work([rows[0], rows[-1]])
            slope = (b - a) / (rows[-1].batch - rows[0].batch)
            one = a - (rows[0].batch - 1) * slope
            batches[str(group)] = fit.arithmetic_batch(one, one + slope)
    r2 = {name: proportional(times, np.array([getattr(p, name) for p in points], float)) for name in COUNTS}
    return Answer(r2, fit, batches, _image_ratio(points))


def _work(points: list[Point]) -> np.ndarray:
    """Launches, multiply-adds and bytes (n, 3), as `fit_time` takes them."""
    return np.array([[p.launches, p.executed, p.bytes] for p in points], dtype=np.float64)


def by_group(points: list[Point]) -> dict[Group, list[Point]]:
    """Points of each group, in the order they came."""
    found: dict[Group, list[Point]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found


def _image_ratio(points: list[Point]) -> dict[str, float]:
    recurrent, regular = (
        {p.batch: p for p in points if p.group == Group("image", model, layers, "training")}
        for model, layers in (("recurrent", 1), ("regular", 4))
    )
    common = recurrent.keys() & regular.keys()
    if not common:
        return {}
    a, b = recurrent[max(common)], regular[max(common)]
    ratios = {name: getattr(a, name) / getattr(b, name) for name in COUNTS}
    return {"batch": max(common), **ratios, "time": a.seconds / b.seconds, "memory": a.peak_gb / b.peak_gb}


def words(answer: Answer) -> str:
    """The answer in plain words."""
    launch, arithmetic, byte = answer.fit.seconds
    said = ["How much of the variation of log time a count explains when time is taken to be proportional to it:"]
    said += [f"  {text:28} R² = {answer.r2[name]:.3f}" for name, text in COUNTS.items()]
    said.append(f"  {'launches, arithmetic, bytes':28} R² = {answer.fit.r2:.3f} (fitted together)")
    rates = []
    if launch:
        rates.append(f"{1e6 * launch:,.1f} µs a launch")
    if arithmetic:
        rates.append(f"{1e-9 / arithmetic:,.1f} G multiply-adds/s")
    if byte:
        rates.append(f"{1e-9 / byte:,.1f} GB/s")
    said.append(f"The fit: {', '.join(rates)}.")
    for name, batch in answer.arithmetic_batch.items():
        text = f"from batch {batch:,.0f} on" if np.isfinite(batch) else "at no batch"
        said.append(f"  {name}: arithmetic and bytes set the time {text}")
    if ratio := answer.image_ratio:
        said += [
            f"Image, recurrent against regular with 4 layers, a training step at batch {ratio['batch']}:",
            f"  {ratio['paper']:.1%} by the paper's count, which claims less than 5 %",
            f"  {ratio['true']:.1%} by true multiply-adds, {ratio['executed']:.1%} by executed ones",
            f"  {ratio['time']:.1%} by the clock, {ratio['memory']:.1%} of the memory",
        ]
    return "\n".join(said)


def table(points: list[Point]) -> str:
    """A row a model and mode."""
    titles = ("batches", "ms at 1st", "samples/s", "at batch", "peak GB", "first s")
    rows = [f"{'model, mode':30} " + " ".join(f"{title:>10}" for title in titles)]
    for group, found in by_group(points).items():
        best = max(found, key=lambda p: p.batch / p.seconds)
        cells = (
            f"{found[0].batch}–{found[-1].batch}",
            f"{1e3 * found[0].seconds:.1f}",
            f"{best.batch / best.seconds:.1f}",
            f"{best.batch}",
            f"{best.peak_gb:.3f}",
            f"{found[0].first:.2f}",
        )
        rows.append(f"{group!s:30} " + " ".join(f"{cell:>10}" for cell in cells))
    return "\n".join(rows)


def picture(points: list[Point], answer: Answer) -> Any:
    """Time against each count, and against the fit; the closer to a line of slope 1, the better it predicts."""
    figure, axes = new_axes(1, 4, sharey=True)
    times = np.array([point.seconds for point in points])
    across = {text: np.array([getattr(p, name) for p in points], float) for name, text in COUNTS.items()}
    across["fit: launches, arithmetic, bytes (s)"] = answer.fit.predict(_work(points))
    r2 = [*answer.r2.values(), answer.fit.r2]
    names = list(dict.fromkeys(point.group.name for point in points))
    for axis, (text, values), quality in zip(axes[0], across.items(), r2, strict=True):
        for i, name in enumerate(names):
            for mode, marker in (("forward", "o"), ("training", "s")):
                here = [p.group.name == name and p.group.mode == mode for p in points]
                label = name if mode == "forward" else None
                axis.loglog(values[here], times[here], marker, ms=4, color=COLOURS[i % len(COLOURS)], label=label)
        factor = np.exp(np.mean(np.log(times / values)))
        ends = np.array([values.min(), values.max()])
        axis.loglog(ends, factor * ends, color="0.6", lw=1, zorder=0)
        axis.set_title(f"R² = {quality:.3f}")
        axis.set_xlabel(text)
    axes[0, 0].set_ylabel("seconds a batch (circle forward, square training)")
    axes[0, 0].legend(fontsize=8)
    return figure
