"""The paper's figures from runs: loss and accuracy, curriculum, loss against operations, α.

Colours are those of Okabe and Ito, which are safe for colour blindness; lines also differ in their dashes.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mlx_rtx.plots.run_history import History
from mlx_rtx.support.errors import NotInstalled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", "--", "-.", ":"]
STYLE: Any = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def training(runs: Sequence[History]) -> "Figure":
    """Plot Figures 1 and 2: loss and accuracy against samples, one column per run, with the stages of a curriculum."""
    figure, axes = new_axes(2, len(runs), sharex="col", sharey="row")
    for (top, bottom), run in zip(axes.T, runs, strict=True):
        top.set_title(f"{run.name}\n{run.description}", fontsize=11)
        top.plot(run.samples, run.loss, color=COLOURS[5], lw=1, label="training")
        top.plot(run.validated, run.validation_loss, color=COLOURS[1], lw=1.6, ls="--", label="validation")
        bottom.plot(run.validated, 100 * run.accuracy, color=COLOURS[1], lw=1.6, ls="--")
        bottom.set_xlabel("samples")
        for at, noise in run.stages:
            for axis in (top, bottom):
                axis.axvline(at, color="0.6", lw=0.8, zorder=0)
            bottom.annotate(
                f"{noise:,}", (at, 1), xycoords=("data", "axes fraction"), xytext=(2, -2), rotation=90,
                textcoords="offset points", va="top", fontsize=8, color="0.35",
            )  # fmt: skip
        if run.stages:
            bottom.set_xlabel("samples (grey: noise tokens of each stage)")
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("validation accuracy (%)")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylim(0, max(1.05 * 100 * run.accuracy.max() for run in runs))
    axes[0, -1].legend(loc="upper right")
    return figure


def operations(runs: Sequence[History]) -> "Figure":
    """Plot Figure 3: training and validation loss against total operations, by the paper's count."""
    figure, axes = new_axes(1, 2, sharex=True, sharey=True)
    for i, run in enumerate(runs):
        look = _look(i)
        axes[0, 0].plot(run.operations, run.loss, label=run.name, **look)
        axes[0, 1].plot(run.validated_operations, run.validation_loss, label=run.name, **look)
    for axis, name in zip(axes[0], ("training", "validation"), strict=True):
        axis.set_title(f"{name} loss")
        axis.set_xlabel("total operations by the paper's count (G 1e9, T 1e12)")
    axes[0, 0].set_ylabel("loss (nats)")
    axes[0, 0].set_xlim(left=0)
    axes[0, 1].legend(loc="upper right")
    return figure


def alphas(runs: Sequence[History]) -> "Figure":
    """Plot the accumulation parameter α against samples, one line per layer."""
    figure, axes = new_axes(1, 1)
    axis = axes[0, 0]
    lines = 0
    for run in runs:
        for layer, alpha in enumerate(run.alpha.T):
            name = run.name + (f", layer {layer + 1}" if run.alpha.shape[1] > 1 else "")
            axis.plot(run.samples, alpha, label=name, **_look(lines))
            lines += 1
    if not lines:
        axis.text(0.5, 0.5, "no α: regular transformers only", transform=axis.transAxes, ha="center")
    else:
        axis.legend(loc="lower right")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("samples")
    axis.set_ylabel("α  (0 forgets, 1 accumulates)")
    return figure


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "ls": DASHES[i % len(DASHES)], "lw": 1.5}


def doubling(axis: Any, values: Iterable[int]) -> None:
    """Give ``axis`` a base-2 logarithmic x-axis with ticks at ``values``, at most six."""
    ticks = sorted(set(values))
    ticks = ticks[:: max(1, -(-len(ticks) // 6))]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick // 1024}k" if tick % 1024 == 0 else str(tick) for tick in ticks])
    axis.minorticks_off()


def new_axes(rows: int, columns: int, **sharing: Any) -> tuple["Figure", Any]:
    """Return a figure in the project's style, and its axes (rows, columns).

    Raises:
        NotInstalled: matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        raise NotInstalled("plot: needs matplotlib; pip install 'mlx-rtx[plot]'") from None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 4.6 * columns), 1.2 + 3.0 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **sharing)
        for axis in axes.flat:
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k samples, 1M samples
        return figure, axes
