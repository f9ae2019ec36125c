"""Plot the history of runs: ``python -m mlx_rtx.plot runs/text runs/text-regular``."""

from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.plots import figures
from mlx_rtx.plots.run_history import read_history
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import make_folder, write_picture

import tyro

FIGURES = {"training": figures.training, "operations": figures.operations, "alpha": figures.alphas}


@dataclass(frozen=True, kw_only=True)
class PlotCommand:
    """Plot loss and accuracy, loss against operations, and alpha, as PNG and SVG."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """Folder to write to; None: the run folder for a single run, else plots."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, write the plots, and print the paths of the files."""
    command = parse(PlotCommand, arguments, "python -m mlx_rtx.plot")
    require(len(command.runs) >= 1, "RUN: name at least one run folder")
    histories = [read_history(run) for run in command.runs]
    out = command.out or (command.runs[0] if len(command.runs) == 1 else Path("plots"))
    drawn = {name: draw(histories) for name, draw in FIGURES.items()}
    make_folder(out)
    for name, figure in drawn.items():
        for kind in ("png", "svg"):
            print(write_picture(out, name, figure, kind))


if __name__ == "__main__":
    run_command(main)
