"""Compare time and memory of the paper's shapes in MLX and PyTorch on the same machine.

    python benchmarks/peers.py  # minutes on a GPU
    python benchmarks/peers.py --shapes text --modes training --batch 2 --repeats 3  # a minute on a CPU

The PyTorch model is `torch_model`, written as a user of PyTorch would: every window passes whole through the layer.
It runs eagerly, with the layer compiled, and with the whole step captured as a CUDA graph. A training step is the same
on both sides: loss of the positions with a target, gradient, clipping at norm 1, AdamW. Each contender runs twice, in a
separate process, alternating with the others; its faster round counts. Prints tables, a comparison in words and one
line of JSON.
"""

import importlib.util
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mlx_rtx.model.config import ModelKind
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import write_report
from mlx_rtx.training.recipes import COPY_PAPER, IMAGE_PAPER, TEXT_PAPER

import mlx.core as mx

from lib import contender, sweep
from lib.machine_results import results_folder
from lib.request import Contender, ContenderTiming, Request

RECIPES = {"image": IMAGE_PAPER.training, "text": TEXT_PAPER.training, "copy": COPY_PAPER.training}
CONTENDERS: dict[Contender, str] = {
    "mlx": "mlx_rtx",
    "torch eager": "torch_model, eager",
    "torch compile": "torch.compile of the layer, in its default mode, specialised for each length",
    "torch graphs": "the whole step captured as one CUDA graph",
}
ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Compare time and memory of the paper's shapes in MLX and, run three ways, in PyTorch."""

    shapes: tuple[Literal["image", "text", "copy"], ...] = ("image", "text", "copy")
    """Shapes of the paper to run."""
    modes: tuple[Literal["training", "forward"], ...] = ("training", "forward")
    """Training steps, forward passes, or both."""
    models: tuple[ModelKind, ...] = ("recurrent",)
    """The paper's model, or the regular transformers that its tables compare."""
    batch: int | None = None
    """Sequences per step; by default the paper's (image 120, text 64, copy 64)."""
    segment: int | None = None
    """Blocks per segment of MLX's gradient; by default the recipe's (image 16, text 8, copy 8)."""
    contenders: tuple[Contender, ...] = ("mlx", "torch eager", "torch compile", "torch graphs")
    """Contenders to run."""
    repeats: int = 20
    """Timings per contender and round."""
    tf32: bool = False
    """Let both sides use TF32 for float32 matrix products, if the GPU supports it."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        for name in ("shapes", "modes", "models", "contenders"):
            require(bool(getattr(self, name)), f"{name}: name at least one")
        require(self.batch is None or self.batch >= 1, f"batch={self.batch}: must be at least 1")
        for name in ("repeats", "segment"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: must be at least 1")
        require_at_most(self, batch=2**20, repeats=10**6)


@dataclass(frozen=True)
class Race:
    """A model at a batch size, and the rounds of each contender: a timing, or the reason why there is none."""

    group: sweep.Group
    batch: int
    rounds: dict[Contender, list[ContenderTiming | str]]

    def __str__(self) -> str:
        return f"{self.group}, batch {self.batch}"

    @property
    def best(self) -> dict[Contender, ContenderTiming]:
        """The faster round of each contender that ran."""
        timings = {name: [t for t in rounds if isinstance(t, ContenderTiming)] for name, rounds in self.rounds.items()}
        return {name: min(found, key=lambda t: t.seconds) for name, found in timings.items() if found}


def request_for(name: Contender, group: sweep.Group, batch: int, peers: Peers) -> Request:
    """Return the request to a contender."""
    bench = sweep.Bench(group, sweep.own_size(group.subject, batch))
    _, length, targets = bench.at
    return Request(
        contender=name,
        model=group.model,
        mode=group.mode,
        config=asdict(bench.benchmark.config),
        batch=batch,
        length=length,
        targets=targets,
        segment=peers.segment or RECIPES[group.subject].segment,
        repeats=peers.repeats,
        tf32=peers.tf32,
        gpu=mx.default_device() == mx.gpu,
    )


def race(group: sweep.Group, batch: int, peers: Peers) -> Race:
    """Run all contenders alternately, and print each round's result."""
    run = Race(group, batch, {name: [] for name in peers.contenders})
    print(run, flush=True)
    for i in range(ROUNDS):
        for name, rounds in run.rounds.items():
            if rounds and isinstance(rounds[-1], str):
                continue  # it would fail again
            rounds.append(contender.call(request_for(name, group, batch, peers)))
            last = rounds[-1]
            text = f"{1e3 * last.seconds:,.1f} ms" if isinstance(last, ContenderTiming) else f"left out ({last})"
            print(f"  round {i + 1}, {name}: {text}", flush=True)
    return run


def table(run: Race) -> str:
    """Return a table with one row per contender and its ratios to MLX; the first call is that of round 1, uncached."""
    titles = ("ms", "× mlx's", "peak GB", "× mlx's", "first s")
    rows = [f"{run!s:40} " + " ".join(f"{title:>9}" for title in titles)]
    ours = run.best.get("mlx")
    seconds, peak_gb = (ours.seconds, ours.peak_gb) if ours else (None, None)
    for name, timing in run.best.items():
        gb, first = timing.peak_gb, run.rounds[name][0]
        assert isinstance(first, ContenderTiming)
        cells = (
            f"{1e3 * timing.seconds:,.1f}",
            _ratio(timing.seconds, seconds),
            "-" if gb is None else f"{gb:.3f}",
            _ratio(gb, peak_gb),
            f"{first.first:.2f}",
        )
        rows.append(f"{name:40} " + " ".join(f"{cell:>9}" for cell in cells))
    return "\n".join(rows)


def words(run: Race) -> str:
    """Return one line per other contender with MLX's time and memory relative to it."""
    theirs, lines = run.best, []
    ours = theirs.pop("mlx", None)
    if ours is None or not theirs:
        return f"{run}: nothing to compare"
    for name, timing in theirs.items():
        line = f"{run}: mlx takes {_ratio(ours.seconds, timing.seconds)} times {name}'s time"
        if timing.peak_gb is not None:
            line += f" and {_ratio(ours.peak_gb, timing.peak_gb)} times its memory"
        lines.append(line)
    return "\n".join(lines)


def _ratio(a: float | None, b: float | None) -> str:
    """Return a / b as text; a dash if one of them is unknown."""
    return f"{a / b:.2f}" if a is not None and b else "-"


def main(arguments: list[str]) -> None:
    """Run the contenders and print the comparison."""
    peers = parse(Peers, arguments, "python benchmarks/peers.py")
    require(importlib.util.find_spec("torch") is not None, "peers: needs torch; pip install 'mlx-rtx[peers]'")
    os.environ["MLX_ENABLE_TF32"] = str(int(peers.tf32))  # for the worker processes, and the report's header
    todo = sweep.groups(peers.shapes, peers.models, peers.modes)
    require(bool(todo), f"models={peers.models}: the paper has no such model for shapes={peers.shapes}")
    folder = results_folder(peers.out)
    if advice := backend.advice():
        print(advice)
    races = [race(group, peers.batch or RECIPES[group.subject].batch, peers) for group in todo]
    answer = {
        str(run): {name: {"seconds": t.seconds, "peak_gb": t.peak_gb} for name, t in run.best.items()} for run in races
    }
    found = {name: timing for run in races for name, timing in run.best.items()}
    facts = {name: {"what": CONTENDERS[name], "ran_on": t.ran_on, "memory": t.memory} for name, t in found.items()}
    report = {
        "tf32": peers.tf32,
        "segment": peers.segment,
        "repeats": peers.repeats,
        "contenders": facts,
        "answer": answer,
    }
    write_report(folder, "peers", {**report, "races": [asdict(run) for run in races]})
    for run in races:
        print("", table(run), sep="\n")
    print("")
    for name, fact in facts.items():
        print(f"{name}: {fact['what']}; {fact['ran_on']}; memory: {fact['memory']}")
    print("", *(words(run) for run in races), "", f"report: {folder / 'peers.json'}", sep="\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    run_command(main)
