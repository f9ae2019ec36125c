"""What the points of a sweep say: tables, an answer in words, pictures."""

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
GOOD = 0.9  # R² from which a count is said to predict time
AXES = {"length": "length L", "block": "block width K", "dim": "width D"}


@dataclass(frozen=True)
class Answer:
    """How well each count predicts time, and what does."""

    r2: dict[str, float]
    """Of each count, times being proportional to it, over all points."""
    within: dict[str, dict[str, float]]
    """The same over the points of one model and mode alone, where there are four or more."""
    fit: TimeFit
    """Of launches, multiply-adds and bytes together."""
    arithmetic_batch: dict[str, float | None]
    """Per model and mode: the batch from which arithmetic and bytes take longer than launches; None for none."""
    achieved: dict[str, dict[str, float]]
    """Per model and mode, at its fastest: the share of each ceiling that was reached."""
    image_ratio: dict[str, float]
    """Recurrent : regular with 4 layers on images, by each count, and by the clock at the largest common batch."""
    memory: dict[str, float]
    """Of the training steps that took more than 0.1 GB: how many, how many of them within 15 % of the prediction or
    its range, and the smallest and largest ratio of what was measured to its nearer end."""


def conclude(points: list[Point], ceilings: Ceilings) -> Answer:
    """Fit the points, and hold them against what the machine can do."""
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
    """Of each count as the only predictor of time."""
    times = np.array([point.seconds for point in points])
    return {name: proportional(times, np.array([getattr(p, name) for p in points], float)) for name in COUNTS}


def _work(points: list[Point]) -> np.ndarray:
    """Launches, multiply-adds and bytes (n, 3), as `fit_time` takes them."""
    return np.array([[p.launches, p.executed, p.bytes] for p in points], dtype=np.float64)


def _achieved(point: Point, ceilings: Ceilings) -> dict[str, float]:
    return {
        "batch": point.size.batch,
        "launches": point.launches / point.seconds / ceilings.launches_per_s,
        "arithmetic": point.executed / point.seconds / ceilings.multiply_adds_per_s,
        "bytes": point.bytes / point.seconds / ceilings.bytes_per_s,
    }


def fastest(rows: list[Point]) -> Point:
    """The point at which most tokens pass in a second."""
    return max(rows, key=tokens_per_s)


def tokens_per_s(point: Point) -> float:
    """Tokens that pass in a second."""
    return point.size.batch * point.size.length / point.seconds


def by_group(points: Iterable[Point]) -> dict[Group, list[Point]]:
    """Points of each group, in the order they came."""
    found: dict[Group, list[Point]] = {}
    for point in points:
        found.setdefault(point.group, []).append(point)
    return found


def over_batches(points: Iterable[Point]) -> list[Point]:
    """Points of the paper's own sizes, of which only the batch differs, smallest first."""
    own = [point for point in points if point.size == own_size(point.group.subject, point.size.batch)]
    return along_axis(own, "batch")


def along(points: Iterable[Point], axis: str) -> dict[Group, list[Point]]:
    """Of each group, at the batch that has most of them, points in which nothing but ``axis`` differs from the
    paper's sizes; groups with two values or more."""
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
    """Points by rising ``axis`` of their size."""
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
    best, worst = max(answer.r2, key=answer.r2.__getitem__), answer.r2["paper"]
    said.append(
        f"So the paper's formula {'predicts' if worst > GOOD else 'does not predict'} time here; of the three counts "
        f"the {COUNTS[best]} do{'es' if best == 'paper' else ''} best."
    )
    for text, predicted in (("does", True), ("does not", False)):
        names = [name for name, r2 in answer.within.items() if (r2["paper"] > GOOD) is predicted]
        if names:
            said.append(f"Inside one model, over its own sizes, it {text} (R² above {GOOD}): {'; '.join(names)}.")
    for name, batch in answer.arithmetic_batch.items():
        text = f"from batch {batch:,.0f} on" if batch is not None else "at no batch"
        said.append(f"  {name}: arithmetic and bytes set the time {text}")
    if ratio := answer.image_ratio:
        said += [
            f"Image, recurrent against regular with 4 layers, a training step at batch {ratio['batch']}:",
            f"  {ratio['paper']:.1%} by the paper's count, which claims less than 5 %",
            f"  {ratio['true']:.1%} by true multiply-adds, {ratio['executed']:.1%} by executed ones",
            f"  {ratio['time']:.1%} by the clock, {ratio['memory']:.1%} of the memory",
        ]
    if memory := answer.memory:
        said.append(
            f"Memory: of {memory['points']} training steps above 0.1 GB {memory['within']} took what was predicted "
            f"within {100 * WITHIN:.0f} %, all of them {memory['smallest']:.2f} to {memory['largest']:.2f} times that."
        )
    return "\n".join(said)


def table(points: list[Point], answer: Answer) -> str:
    """A row a model and mode at the paper's sizes; then rows along the other axes."""
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
    rows.append("(launches, arithmetic, bytes: share of the machine's ceiling, where most tokens pass in a second)")
    for axis, title in AXES.items():
        for group, line in along(points, axis).items():
            each = ", ".join(f"{getattr(p.size, axis):,}: {1e3 * p.seconds:,.1f}" for p in line)
            rows.append(f"{group}, batch {line[0].size.batch}, ms over {title}: {each}")
    return "\n".join(rows)


def _percent(shares: dict[str, float]) -> list[str]:
    return [f"{shares[name]:.1%}" for name in ("launches", "arithmetic", "bytes")]


def counts_picture(points: list[Point], answer: Answer) -> Any:
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


def axes_picture(points: list[Point]) -> Any:
    """Tokens a second over the batch, and milliseconds over each other axis that was swept; a row a mode."""

    def lines(rows: list[Point], field: str) -> dict[Group, list[Point]]:
        return by_group(over_batches(rows)) if field == "batch" else along(rows, field)

    titles = {"batch": "batch B", **AXES}
    panels = {field: title for field, title in titles.items() if lines(points, field)}
    panels = panels or {"batch": titles["batch"]}  # empty, where no axis was swept
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
            axis.set_ylabel(f"{'tokens a second' if field == 'batch' else 'ms a batch'}, {mode}")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(min(len(handles), 3 * len(panels)), 1)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=9)
    return figure
