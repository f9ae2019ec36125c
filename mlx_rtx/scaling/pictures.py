"""Plots of the scaling law: |S| against D, its exponent against l, and losses with the fit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlx_rtx.plots.figures import COLOURS, DASHES, new_axes
from mlx_rtx.scaling.grid import Loss
from mlx_rtx.scaling.regression import LossFit
from mlx_rtx.scaling.unique import Growth

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (1, 2, 4, 8, 16, 64, 1024)  # lengths to plot
MARKS = "osD^v<>"


def unique(growths: Sequence[Growth], band: tuple[float, float]) -> "Figure":
    """Plot |S| against D, one panel per corpus and one line per length; grey: D^low to D^high."""
    columns = 2 if len(growths) == 4 else min(len(growths), 3)
    figure, axes = new_axes(-(-len(growths) // columns), columns, sharey=True)
    for axis, found in zip(axes.flat, growths, strict=False):
        sizes = np.array(found.sizes, float)
        axis.fill_between(
            sizes, sizes ** band[0], sizes ** band[1], color="0.88", lw=0, label=f"D^{band[0]:g} … D^{band[1]:g}"
        )
        shown = [i for i, length in enumerate(found.lengths) if length in SHOWN]
        for i, row in enumerate(shown):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "ms": 3, "lw": 1.3}
            axis.plot(sizes, found.counts[row], label=f"l = {found.lengths[row]:,}", **look)
        axis.plot(sizes, sizes, color="0.4", ls=":", lw=1, label="all different")
        axis.set_title(found.name, fontsize=11)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("D, sequences")
    for axis in axes[:, 0]:
        axis.set_ylabel("|S|, different ones")
    for axis in list(axes.flat)[len(growths) :]:
        axis.axis("off")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def exponents(panels: Mapping[str, Sequence[Growth]], band: tuple[float, float]) -> "Figure":
    """Plot the exponent of D in |S| against l, one line per corpus, with intervals; dotted: over D's last decade."""
    figure, axes = new_axes(1, len(panels), sharey=True)
    for axis, (title, growths) in zip(axes[0], panels.items(), strict=True):
        axis.axhspan(*band, color="0.88", lw=0, label=f"the paper: {band[0]:g} … {band[1]:g}")
        for i, found in enumerate(growths):
            values = np.array(found.exponents)
            errors = np.abs(values[:, 1:] - values[:, :1]).T
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)], "ms": 4}
            axis.errorbar(found.lengths, values[:, 0], errors, label=found.name, lw=1.3, capsize=2, **look)
            axis.plot(found.lengths, found.last, ls=":", lw=1, color=look["color"])
        axis.set_title(title, fontsize=11)
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
        axis.minorticks_off()
        axis.set_xlabel("l, tokens of a sequence (dotted: last decade of D)")
        axis.set_ylim(0, 1.05)
        axis.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.18))
    axes[0, 0].set_ylabel("exponent of D in |S|")
    return figure


def losses(panels: Mapping[str, tuple[Sequence[Loss], LossFit]]) -> "Figure":
    """Plot losses against D, one panel per kind of model and one colour per size N; dashed: the fit."""
    figure, axes = new_axes(1, len(panels), sharey=True)
    for axis, (title, (runs, found)) in zip(axes[0], panels.items(), strict=True):
        sizes = np.array(sorted({run.tokens for run in runs}), float)
        for i, N in enumerate(sorted({run.parameters for run in runs})):
            own = sorted((run for run in runs if run.parameters == N), key=lambda run: run.tokens)
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)]}
            axis.plot(
                [run.tokens for run in own],
                [run.loss for run in own],
                marker=MARKS[i % len(MARKS)],
                ms=5,
                ls="",
                label=f"N = {N:,}",
                **look,
            )
            axis.plot(sizes, [found.fit.loss(N, D) for D in sizes], ls=DASHES[1], lw=1.3, **look)
        axis.set_title(f"{title}; residuals {100 * found.spread:.1f} %", fontsize=11)
        axis.set_xscale("log")
        axis.set_xlabel("D, characters read once")
        axis.legend(fontsize=9, loc="upper right")
    axes[0, 0].set_ylabel("loss (nats per character)")
    return figure
