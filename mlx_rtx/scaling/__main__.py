"""Compute and measure the paper's scaling law: ``python -m mlx_rtx.scaling theory|count|train|fit``.

theory: γ from published fits of the loss. count: unique sequences in texts and synthetic corpora, compared with the
paper's band. train: losses by model width and data size. fit: Eq. 3 fitted to these losses, and the γ that it implies.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from mlx_rtx.model.config import ModelKind
from mlx_rtx.scaling import corpora, grid, pictures
from mlx_rtx.scaling.jobs import run_all
from mlx_rtx.scaling.published import PAPER, PUBLISHED
from mlx_rtx.scaling.regression import Interval, LossFit, fit_losses
from mlx_rtx.scaling.theory import gamma
from mlx_rtx.scaling.unique import LENGTHS, Growth, growth, rising_sizes
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most, require_each
from mlx_rtx.support.json_lines import append_line
from mlx_rtx.support.parsing import parse_subcommand
from mlx_rtx.support.reports import add_picture, make_folder, write_report
from mlx_rtx.tasks import text_file
from mlx_rtx.tasks.text import HELD_OUT

import numpy as np
import tyro

PROGRAM = "python -m mlx_rtx.scaling"
RESULTS = Path("runs", "scaling")
LAYERS = {"recurrent": 1, "regular": 4}
LEAST = 10  # minimum number of sequences of a length for it to be counted


@dataclass(frozen=True, kw_only=True)
class Theory:
    """Print γ for each published fit of the loss."""

    beta: float | None = None
    """Exponent of the data for which to print γ, instead of the published fits."""
    operations: float = 5.76e23
    """Operations 6 N D of a training for which to print the N and D of least loss; the default is Gopher's."""

    def __post_init__(self):
        require(self.beta is None or 0 < self.beta < 1, f"beta={self.beta}: must lie between 0 and 1")
        require(0 < self.operations < 1e100, f"operations={self.operations}: must be above 0 and below 1e100")


@dataclass(frozen=True, kw_only=True)
class Count:
    """Count unique sequences."""

    texts: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[TEXT ...]")]] = ()
    """Texts in UTF-8, each counted by character and by word."""
    made: bool = True
    """Also count synthetic corpora of known diversity."""
    size: int = 10_000_000
    """Number of tokens of a synthetic corpus."""
    lengths: tuple[int, ...] = LENGTHS
    """Lengths l of the sequences."""
    decades: float = 4
    """Decades of D to cover, up to the whole corpus."""
    starts: int = 8
    """Number of positions at which reading of a corpus starts, for the confidence interval."""
    out: Path = RESULTS
    """Folder for the report and the plots."""

    def __post_init__(self):
        require(self.made or bool(self.texts), "texts: name at least one, or drop --no-made")
        require(self.size >= 10, f"size={self.size}: must be at least 10")
        require(0 < self.decades <= 20, f"decades={self.decades}: must be above 0 and at most 20")
        require(self.starts >= 2, f"starts={self.starts}: an interval needs 2 or more")
        require_at_most(self, size=10**9, starts=1000)
        require_each(self, "lengths", least=1, most=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train models of several widths on several amounts of a text, each read once."""

    text: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="[TEXT]")]] = None
    """Text in UTF-8, whose last tenth is held out to score every run; None: tiny Shakespeare."""
    models: tuple[ModelKind, ...] = ("recurrent", "regular")
    """Kinds of models: recurrent with one layer, regular with four."""
    dims: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Model widths."""
    halvings: int = 5
    """Data sizes: the whole training text, and this many successive halves."""
    lrs: tuple[float, ...] = (2e-3,)
    """Learning rates; the best one counts."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds of weights and order."""
    jobs: int = 1
    """Number of parallel processes, each for one kind and width."""
    out: Path = RESULTS
    """Folder of losses.jsonl, to which one row per run is appended; runs that it contains are skipped."""

    def __post_init__(self):
        require(bool(self.models), "models: name at least one")
        require_each(self, "dims", least=1, most=2**16)
        require_each(self, "lrs", least=1e-30, most=1e30)
        require_each(self, "seeds", least=0, most=2**31 - 1)
        require(self.halvings >= 0, f"halvings={self.halvings}: must be at least 0")
        require(self.jobs >= 1, f"jobs={self.jobs}: must be at least 1")
        require_at_most(self, halvings=40, jobs=1000)


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """Fit Eq. 3 to the losses of `train`."""

    losses: Path = RESULTS / "losses.jsonl"
    """File of losses that train wrote."""
    resamples: int = 1000
    """Number of bootstrap fits to resampled runs, for the confidence intervals."""
    out: Path = RESULTS
    """Folder for the report and the plot."""

    def __post_init__(self):
        require(self.resamples >= 20, f"resamples={self.resamples}: an interval needs 20 or more")
        require_at_most(self, resamples=10**6)


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, and run one of the four subcommands."""
    choices: dict[str, tuple[str, Any]] = {
        "theory": (Theory.__doc__ or "", Theory()),
        "count": (Count.__doc__ or "", Count()),
        "train": (Train.__doc__ or "", Train()),
        "fit": (FitCommand.__doc__ or "", FitCommand()),
    }
    command = parse_subcommand(choices, arguments or ["theory"], PROGRAM, __doc__ or "")
    does: dict[type, Callable] = {Theory: theory, Count: count, Train: train, FitCommand: fit}
    does[type(command)](command)


def theory(command: Theory) -> None:
    """Print γ for one exponent, or for each published fit."""
    if command.beta is not None:
        low, high = gamma(command.beta)
        print(f"beta={command.beta:g}: |S|, and the parameters of an efficient model, grow as D^{low:g} to D^{high:g}")
        return
    print(f"γ in [1 - 2β, 1 - β], and N and D of least loss at {command.operations:.3g} operations, by published fits")
    print(f"{'':44} {'β':>6} {'γ':>14} {'N ∝ C^a':>8} {'printed':>8} {'N':>8} {'D':>8}")
    for one in PUBLISHED:
        beta = one.data_exponent
        exponents = "{:.2f} … {:.2f}".format(*gamma(beta)) if beta else "–"
        best = [f"{value:.2g}" for value in one.fit.optimum(command.operations)] if one.fit else ["–", "–"]
        own = f"{one.fit.exponents()[0]:.2f}" if one.fit else "–"
        printed = f"{one.allocation[0]:.2f}" if one.allocation else "–"
        print(
            f"{one.name:44} {f'{beta:.3g}' if beta else '–':>6} {exponents:>14} {own:>8} {printed:>8} "
            f"{best[0]:>8} {best[1]:>8}"
        )
    print("sources:")
    for one in PUBLISHED:
        print(
            f"  {one.name}: {one.source}; {one.corpus}, N: {one.parameters}" + (f"; {one.errors}" if one.errors else "")
        )


def count(command: Count) -> None:
    """Count unique sequences, print one table per corpus, and write the report and the plots."""
    band, out = gamma(PAPER.beta), make_folder(command.out)
    texts = [found for path in command.texts for found in corpora.of_text(path)]
    made = [corpora.Corpus(name, make(command.size)) for name, make in (corpora.MADE if command.made else {}).items()]
    groups: dict[str, list[Growth]] = {"texts": [], "made corpora": []}
    for group, found in (("texts", texts), ("made corpora", made)):
        for one in found:
            groups[group] += counted(one, command, band)
    require(
        any(groups.values()),
        f"lengths={command.lengths}: too long for all corpora; give longer texts, or shorter lengths",
    )
    report = {name: [one.report() for one in found] for name, found in groups.items()}
    print(write_report(out, "unique", {"band": band, **report}))
    for name, growths in (("unique", groups["texts"]), ("unique_made", groups["made corpora"])):
        if growths:
            add_picture(out, name, partial(pictures.unique, growths, band))
    shown = {name: growths for name, growths in groups.items() if growths}
    add_picture(out, "gamma", lambda: pictures.exponents(shown, band))


def counted(one: corpora.Corpus, command: Count, band: tuple[float, float]) -> list[Growth]:
    """Count and print one corpus; return its growth in a list, empty if the corpus is too short for all lengths."""
    began = time.perf_counter()
    lengths = [length for length in command.lengths if len(one.tokens) - length + 1 >= LEAST]
    left_out = [str(length) for length in command.lengths if length not in lengths]
    if not lengths:
        print(f"{one.name}: not counted, {len(one.tokens):,} tokens are too few for all of the lengths")
        return []
    sizes = rising_sizes(len(one.tokens) - max(lengths) + 1, command.decades)
    found = growth(one, lengths, sizes, command.starts)
    print(f"{one.name}: {found.tokens:,} tokens, {found.symbols:,} distinct; D from {sizes[0]:,} to {sizes[-1]:,}")
    if left_out:
        print(f"not counted, because there are fewer than {LEAST} sequences: l = {', '.join(left_out)}")
    print(f"{'l':>6} {'|S| of all':>12} {'exponent':>9} {'95 %':>16} {'first decade':>13} {'last':>6}")
    for row, length in enumerate(found.lengths):
        value, low, high = found.exponents[row]
        mark = "  in the band" if length in found.within(*band) else ""
        spread = f"{low:z.3f} … {high:z.3f}"
        ends = f"{found.first[row]:>z13.3f} {found.last[row]:>z6.3f}"
        print(f"{length:>6} {found.counts[row][-1]:>12,} {value:>z9.3f} {spread:>16} {ends}{mark}")
    print(f"counted from {command.starts} positions in {time.perf_counter() - began:.1f} s", flush=True)
    return [found]


def train(command: Train) -> None:
    """Train the models of the grid that have no loss yet."""
    text, path = text_file.load(str(command.text) if command.text else None, "TEXT")
    most = int((1 - HELD_OUT) * len(text)) // grid.LENGTH * grid.LENGTH
    sizes = [most >> i for i in range(command.halvings + 1)]
    require(
        sizes[-1] >= 4 * grid.LENGTH,
        f"halvings={command.halvings}: leaves only {sizes[-1]:,} characters; use fewer",
    )
    points = [
        grid.GridPoint(model, LAYERS[model], dim, size, lr, seed)
        for model in command.models
        for dim in command.dims
        for size in sizes
        for lr in command.lrs
        for seed in command.seeds
    ]
    out = make_folder(command.out)
    todo = list(grid.missing(points, out / "losses.jsonl"))
    print(f"{len(points)} runs, {len(points) - len(todo)} done before; device: {backend.device()}", flush=True)
    groups = sorted({(point.model, point.dim) for point in todo}, key=lambda group: -group[1])  # longest first
    if command.jobs > 1 and len(groups) > 1:
        codes = run_all([_words(command, path, group) for group in groups], command.jobs)
        require(not any(codes), "a process of the grid failed; see above, and call again to continue")
        return
    for point in todo:
        loss = grid.train(point, text, path.name)
        append_line(out / "losses.jsonl", loss.row())
        print(
            f"{point.model} dim={point.dim} N={loss.parameters:,} D={loss.tokens:,} lr={point.lr:g} seed={point.seed} "
            f"steps={loss.steps:,}: loss {loss.loss:.4f}({loss.loss_se:.1g}) in {loss.seconds:.1f} s",
            flush=True,
        )


def _words(command: Train, path: Path, group: tuple[str, int]) -> list[object]:
    """Return the command that trains the part of the grid with one kind and width."""
    model, dim = group
    words: list[object] = [sys.executable, "-m", "mlx_rtx.scaling", "train", path, "--models", model, "--dims", dim]
    words += ["--halvings", command.halvings, "--lrs", *command.lrs, "--seeds", *command.seeds]
    return [*words, "--out", command.out]


def fit(command: FitCommand) -> None:
    """Fit Eq. 3 for each kind of model, print the results, and write the report and the plot."""
    read = grid.read_losses(command.losses)
    every = [loss for loss in read if math.isfinite(loss.loss)]
    require(bool(every), f"losses={command.losses}: contains no run; train some with {PROGRAM} train")
    if len(every) < len(read):
        print(f"{len(read) - len(every)} runs left out: their loss is not finite")
    runs, noise = grid.best_runs(every), grid.seed_noise(every)
    print(f"{len(every)} runs; {len(runs)} after selecting the best among learning rates and seeds")
    if noise is not None:
        print(f"standard deviation of the loss between seeds: {100 * noise:.2f} %")
    report: dict[str, Any] = {"seed_noise": noise}
    panels: dict[str, tuple[Sequence[grid.Loss], LossFit]] = {}
    for model in sorted({run.point.model for run in runs}):
        own = [run for run in runs if run.point.model == model]
        N = {"all parameters": [run.parameters for run in own]}
        N["without embeddings"] = [run.parameters - run.embeddings for run in own]
        D, losses = np.array([run.tokens for run in own]), np.array([run.loss for run in own])
        for which, values in N.items():
            name = f"{model}, N: {which}"
            found = fit_losses(np.array(values), D, losses, command.resamples)
            report[name] = found.report()
            print_fit(name, found, len(own))
            if which == "all parameters":
                panels[f"{model}, {LAYERS[model]} layer{'s' * (LAYERS[model] > 1)}"] = own, found
    out = make_folder(command.out)
    print(write_report(out, "fits", report))
    add_picture(out, "losses", lambda: pictures.losses(panels))


def print_fit(name: str, found: LossFit, runs: int) -> None:
    """Print the constants with their intervals, and the γ that they imply."""
    print(f"{name}: {runs} runs; residuals {100 * found.spread:.2f} % (root mean square)")
    print("  " + "; ".join(f"{constant} {_formatted(found.interval(constant))}" for constant in found.fit._fields))
    low, high = found.gammas()
    print(f"  γ from {_formatted(low)} to {_formatted(high)}; N ∝ C^a, a {_formatted(found.allocation())}")


def _formatted(interval: Interval) -> str:
    value, low, high = (f"{number:.3g}" if abs(number) > 1e-6 else "0" for number in interval)
    return f"{value} ({low} … {high})"


if __name__ == "__main__":
    run_command(main)
