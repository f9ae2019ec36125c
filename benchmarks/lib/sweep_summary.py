"""Summary of a sweep's points: tables, an answer in words, pictures."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlx_rtx.forecast.memory import WITHIN, ratio_to_range
from mlx_rtx.plots.figures import COLOURS, DASHES, doubling, new_axes

import numpy as np

from lib.ceilings import Ceilings
from lib.fit import TimeFit, fit_time, proportional
from lib.sweep import Group, Point, own_size

COUNTS = {"paper": "paper's r(4dlk+2ld²)", "true": "true multiply-adds", "executed": "executed multiply-adds"}
GOOD = 0.9  # R² above which a count is considered to predict time
AXES = {"length": "length L", "block": "block width K", "dim": "width D"}


@dataclass(frozen=True)
class Answer:
    """How well the counts predict time."""

    r2: dict[str, float]
    """R² of each count over all points, with time proportional to the count."""
    within: dict[str, dict[str, float]]
    """The same for each model and mode with at least four points."""
    fit: TimeFit
    """Fit of time to launches, multiply-adds and bytes."""
    arithmetic_batch: dict[str, float | None]
    """Per model and mode: the batch above which arithmetic and bytes take longer than launches; None if none."""
    achieved: dict[str, dict[str, float]]
    """Per model and mode, at its fastest point: the fraction of each ceiling that was reached."""
    image_ratio: dict[str, float]
    """Recurrent / regular with 4 layers on images at the largest common batch: each count, time and memory."""
    memory: dict[str, float]
    """For training steps that took more than 0.1 GB: their number, the number within 15 % of the predicted range, and
    the smallest and largest ratio of measured memory to the nearest end of the range."""


def conclude(points: list[Point], ceilings: Ceilings) -> Answer:
    """Fit the points and compare them with the machine's ceilings."""
    times = np.array([point.seconds for point in points])
    fit = fit_time(times, _work(points))
    batches = {}
    for group, rows in by_group(over_batches(points)).items():
        if len(rows) > 1:
            a, b = _work([rows[0], rows[-1]])
            slope = (b - a) / (rows[-1].size.batch - rows[0].size.batch)
            one = a - (rows[0].size.batch - 1) * slope
            found = fit.arithmetic_batch(one, one + slope)
            batches[str(group)] = found if np.isfinite(found) else None
    within = {str(group): _r2(rows) for group, rows in by_group(points).items() if len(rows) > 3}
    achieved = {str(group): _achieved(fastest(rows), ceilings) for group, rows in by_group(points).items()}
    return Answer(_r2(points), within, fit, batches, achieved, _image_ratio(points), _memory(points))


def _r2(points: list[Point]) -> dict[str, float]:
    """Return R² of each count as the only predictor of time."""
    times = np.array([point.seconds for point in points])
    return {name: proportional(times, np.array([getattr(p, name) for p in points], float)) for name in COUNTS}


def _work(points: list[Point]) -> np.ndarray:
    """Return launches, multiply-adds and bytes (n, 3) for `fit_time`."""
    return np.array([[p.launches, p.executed, p.bytes] for p in points], dtype=np.float64)


def _achieved(point: Point, ceilings: Ceilings) -> dict[str, float]:
    return {
        "batch": point.size.batch,
        "launches": point.launches / point.seconds / ceilings.launches_per_s,
        "arithmetic": point.executed / point.seconds / ceilings.multiply_adds_per_s,
        "bytes": point.bytes / point.seconds / ceilings.bytes_per_s,
    }


def fastest(rows: list[Point]) -> Point:
    """Return the point with the most tokens per second."""
    return max(rows, key=tokens_per_s)


def tokens_per_s(point: Point) -> float:
    """Return the tokens per second of a point."""
    return point.size.batch * point.size.length / point.seconds


def by_group(points: Iterable[Point]) -> dict[Group, list[Point]]:
    """Return the points of each group, in their given order."""
    found: dict[Group, list[Point]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found


def over_batches(points: Iterable[Point]) -> list[Point]:
    """Return the points with the paper's sizes and any batch, sorted by batch."""
    own = [point for point in points if point.size == own_size(point.group.subject, point.size.batch)]
    return along_axis(own, "batch")


def along(points: Iterable[Point], axis: str) -> dict[Group, list[Point]]:
    """Return for each group the points that differ from the paper's sizes in ``axis`` alone, at the batch with most of
    them; groups with fewer than two such points are left out."""
    found = {}
    for group, rows in by_group(points).items():
        own = own_size(group.subject)
        lines: dict[int, list[Point]] = {}
        for point in rows:
            size = point.size
            if size == replace(own, batch=size.batch, **{axis: getattr(size, axis)}):
                lines.setdefault(size.batch, []).append(point)
        line = max(lines.values(), key=len, default=[])
        if len(line) > 1:
            found[group] = along_axis(line, axis)
    return found


def along_axis(points: Iterable[Point], axis: str) -> list[Point]:
    """Return the points sorted by ``axis`` of their size."""
    return sorted(points, key=lambda point: getattr(point.size, axis))


def _memory(points: list[Point]) -> dict[str, float]:
    steps = [point for point in points if point.group.mode == "training" and point.peak_gb > 0.1]
    if not steps:
        return {}
    ratios = [ratio_to_range(point.peak_gb, *point.predicted_gb) for point in steps]
    within = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    return {"points": len(ratios), "within": within, "smallest": min(ratios), "largest": max(ratios)}


def _image_ratio(points: list[Point]) -> dict[str, float]:
    groups = Group("image", "recurrent", 1, "training"), Group("image", "regular", 4, "training")
    recurrent, regular = ({p.size.batch: p for p in over_batches(points) if p.group == group} for group in groups)
    common = recurrent.keys() & regular.keys()
    if not common:
        return {}
    a, b = recurrent[max(common)], regular[max(common)]
    ratios = {name: getattr(a, name) / getattr(b, name) for name in COUNTS}
    return {"batch": max(common), **ratios, "time": a.seconds / b.seconds, "memory": a.peak_gb / b.peak_gb}


def words(answer: Answer) -> str:
    """Return the answer in words."""
    launch, arithmetic, byte = answer.fit.seconds
    sentences = ["Fraction of the variance of log time that each count explains, with time proportional to the count:"]
    sentences += [f"  {text:28} R² = {answer.r2[name]:.3f}" for name, text in COUNTS.items()]
    sentences.append(f"  {'launches, arithmetic, bytes':28} R² = {answer.fit.r2:.3f} (fitted together)")
    rates = []
    if launch:
        rates.append(f"{1e6 * launch:,.1f} µs per launch")
    if arithmetic:
        rates.append(f"{1e-9 / arithmetic:,.1f} G multiply-adds/s")
    if byte:
        rates.append(f"{1e-9 / byte:,.1f} GB/s")
    sentences.append(f"The fit: {', '.join(rates)}.")
    best, worst = max(answer.r2, key=answer.r2.__getitem__), answer.r2["paper"]
    sentences.append(
        f"The paper's formula {'predicts' if worst > GOOD else 'does not predict'} time here; of the three counts "
        f"the {COUNTS[best]} predict{'s' if best == 'paper' else ''} best."
    )
    for text, predicted in (("does", True), ("does not", False)):
        names = [name for name, r2 in answer.within.items() if (r2["paper"] > GOOD) is predicted]
        if names:
            sentences.append(f"Within one model, over its sizes, it {text} (R² above {GOOD}): {'; '.join(names)}.")
    for name, batch in answer.arithmetic_batch.items():
        text = f"above batch {batch:,.0f}" if batch is not None else "at no batch"
        sentences.append(f"  {name}: arithmetic and bytes take longer than launches {text}")
    if ratio := answer.image_ratio:
        sentences += [
            f"Image, recurrent relative to regular with 4 layers, a training step at batch {ratio['batch']}:",
            f"  {ratio['paper']:.1%} of the paper's count (the paper claims less than 5 %)",
            f"  {ratio['true']:.1%} of the true multiply-adds, {ratio['executed']:.1%} of the executed ones",
            f"  {ratio['time']:.1%} of the measured time, {ratio['memory']:.1%} of the memory",
        ]
    if memory := answer.memory:
        sentences.append(
            f"Memory: {memory['within']} of {memory['points']} training steps above 0.1 GB were within "
            f"{100 * WITHIN:.0f} % of the prediction, all of them at {memory['smallest']:.2f} to "
            f"{memory['largest']:.2f} times the prediction."
        )
    return "\n".join(sentences)


def table(points: list[Point], answer: Answer) -> str:
    """Return a table with one row per model and mode at the paper's sizes, then rows along the other axes."""
    titles = ["batches", "ms at 1st", "samples/s", "tokens/s", "at batch", "peak GB", "first s"]
    titles += ["launches", "arithm.", "bytes"]
    rows = [f"{'model, mode':30} " + " ".join(f"{title:>9}" for title in titles)]
    for group, found in by_group(over_batches(points)).items():
        best, share = fastest(found), _percent(answer.achieved[str(group)])
        cells = (
            f"{found[0].size.batch}–{found[-1].size.batch}",
            f"{1e3 * found[0].seconds:.1f}",
            f"{best.size.batch / best.seconds:,.1f}",
            f"{tokens_per_s(best):,.0f}",
            f"{best.size.batch}",
            f"{best.peak_gb:.3f}",
            f"{found[0].first:.2f}",
            *share,
        )
        rows.append(f"{group!s:30} " + " ".join(f"{cell:>9}" for cell in cells))
    rows.append("(launches, arithmetic, bytes: share of the machine's ceiling, at the most tokens per second)")
    for axis, title in AXES.items():
        for group, line in along(points, axis).items():
            each = ", ".join(f"{getattr(p.size, axis):,}: {1e3 * p.seconds:,.1f}" for p in line)
            rows.append(f"{group}, batch {line[0].size.batch}, ms over {title}: {each}")
    return "\n".join(rows)


def _percent(shares: dict[str, float]) -> list[str]:
    return [f"{shares[name]:.1%}" for name in ("launches", "arithmetic", "bytes")]


def counts_picture(points: list[Point], answer: Answer) -> Any:
    """Draw time against each count and against the fit; points on a line of slope 1 are predicted perfectly."""
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
    axes[0, 0].set_ylabel("seconds per batch (circle forward, square training)")
    axes[0, 0].legend(fontsize=8)
    return figure


def axes_picture(points: list[Point]) -> Any:
    """Draw tokens per second over the batch and milliseconds over each other swept axis, one row per mode."""

    def lines(rows: list[Point], field: str) -> dict[Group, list[Point]]:
        return by_group(over_batches(rows)) if field == "batch" else along(rows, field)

    titles = {"batch": "batch B", **AXES}
    panels = {field: title for field, title in titles.items() if lines(points, field)}
    panels = panels or {"batch": titles["batch"]}  # empty if no axis was swept
    names = list(dict.fromkeys(point.group.name for point in points))
    figure, axes = new_axes(2, len(panels))
    for row, mode in zip(axes, ("forward", "training"), strict=True):
        of_mode = [point for point in points if point.group.mode == mode]
        for axis, (field, title) in zip(row, panels.items(), strict=True):
            for group, line in lines(of_mode, field).items():
                i = names.index(group.name)
                values = [tokens_per_s(p) if field == "batch" else 1e3 * p.seconds for p in line]
                look = {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "marker": "o", "ms": 3}
                axis.loglog([getattr(p.size, field) for p in line], values, label=group.name, **look)
            all_lines = lines(points, field).values()
            doubling(axis, (getattr(p.size, field) for line in all_lines for p in line))
            at = " and ".join(str(batch) for batch in sorted({line[0].size.batch for line in all_lines}))
            axis.set_xlabel(title if field == "batch" else f"{title}, at batch {at}")
            axis.set_ylabel(f"{'tokens per second' if field == 'batch' else 'ms per batch'}, {mode}")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(min(len(handles), 3 * len(panels)), 1)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=9)
    return figure
