"""Draw docs/recurrence.svg, the picture of Eq. 6 in the README: ``python scripts/draw_recurrence.py``."""

from pathlib import Path
from typing import Any

from mlx_rtx.plots.figures import COLOURS

import matplotlib

matplotlib.rcParams |= {"svg.hashsalt": "recurrence", "mathtext.fontset": "cm"}
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: E402

BLUE, ORANGE, GREEN = COLOURS[:3]
STEP = 5.0  # distance between two windows
WIDTH = 1.9  # width of half a window
OUT = Path(__file__).parent.parent / "docs" / "recurrence.svg"


def box(axis: Any, x: float, y: float, width: float, text: str, colour: str, height: float = 0.62) -> None:
    """Draw a labelled box with its lower left corner at (x, y)."""
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", fc=colour + "22", ec=colour)
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12)


def arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], colour: str = "0.3") -> None:
    """Draw a straight arrow."""
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, shrinkA=0, shrinkB=0))


def window(axis: Any, left: float, i: str, following: str, before: str) -> None:
    """Draw one window, from its input block at the bottom to its two outputs at the top."""
    middle, right = left + WIDTH, left + 2 * WIDTH
    box(axis, left, 1.5, WIDTH, rf"$\alpha\, m_{{{before}}} + h_{{{i}}}$", ORANGE)
    box(axis, middle, 1.5, WIDTH, rf"$\alpha\, m_{{{before}}} + x_{{{following}}}$", BLUE)
    box(axis, left, 2.75, 2 * WIDTH, r"$\tau$:  one causal layer, $2K$ tokens", "#555555")
    box(axis, left + 0.45, 4.0, 1.0, rf"$y_{{{i}}}$", GREEN)
    box(axis, middle + 0.45, 4.0, 1.0, rf"$h_{{{following}}}$", ORANGE)
    box(axis, middle + 0.45, 0.1, 1.0, rf"$x_{{{following}}}$", BLUE)
    arrow(axis, (middle + WIDTH / 2, 0.72), (middle + WIDTH / 2, 1.5))
    for x in (left + WIDTH / 2, middle + WIDTH / 2):
        arrow(axis, (x, 2.12), (x, 2.75))
        arrow(axis, (x, 3.37), (x, 4.0))
    arrow(axis, (left + 0.95, 4.62), (left + 0.95, 5.1), GREEN)
    gap = right + (STEP - 2 * WIDTH) / 2  # the carry goes down between two windows
    axis.plot([middle + 1.45, gap, gap], [4.31, 4.31, 1.81], color=ORANGE, lw=1.2)
    arrow(axis, (gap, 1.81), (left + STEP, 1.81), ORANGE)


def main() -> None:
    """Draw the picture and write it to ``OUT``."""
    figure = Figure(figsize=(9.6, 4.3), layout="constrained")
    axis = figure.subplots()
    window(axis, 0, "i", "i+1", "i-1")
    window(axis, STEP, "i+1", "i+2", "i")
    axis.text(0.95, 5.2, "logits of block $i$", ha="center", fontsize=10, color=GREEN)
    axis.text(STEP + 0.95, 5.2, "logits of block $i+1$", ha="center", fontsize=10, color=GREEN)
    axis.text(2.25, 0.33, "embedded input", fontsize=10, color=BLUE, ha="right")
    axis.text(STEP - 0.62, 4.5, "carry", fontsize=10, color=ORANGE, ha="center")
    axis.text(2 * STEP + 0.1, 1.72, "…", fontsize=18, color=ORANGE)
    axis.set_xlim(-0.2, 2 * STEP + 0.7)
    axis.set_ylim(0, 5.5)
    axis.set_aspect("equal")
    axis.axis("off")
    figure.savefig(OUT, metadata={"Date": None})
    print(OUT)


if __name__ == "__main__":
    main()
