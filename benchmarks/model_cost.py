"""Cost of models of any size: a training step, and generating a token after contexts of increasing length.

    python benchmarks/model_cost.py "text --dim 512 --heads 8 --block 128" "text --model regular --layers 6"

Each argument is a training command of `mlx_rtx.train`: its task and flags. Weights are random, because time does not
depend on their values. A step is a training step of that command, with its batch and length. Tokens are generated from
the recurrent model's state or the regular one's key-value cache. Prints a table and one line of JSON.
"""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx_rtx import train
from mlx_rtx.forecast.step_benchmark import StepBenchmark
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import write_report
from mlx_rtx.support.trees import count
from mlx_rtx.training.settings import RunConfig

import tyro

from generation import CACHED, RECURRENT, TOKENS, WARM_UP, continued, make, memory
from lib.budget import Budget
from lib.machine_results import results_folder


@dataclass(frozen=True, kw_only=True)
class ModelCost(Budget):
    """Measure time and memory of a training step, and of a token over context length."""

    commands: tyro.conf.Positional[tuple[str, ...]]
    """Training commands, each in quotes: a task and its flags."""
    contexts: tuple[int, ...] = (1024, 16384, 262144)
    """Numbers of tokens before the ones that are generated and timed."""
    repeats: int = 10
    """Timings of a training step."""
    seconds: float | None = 600.0
    """Approximate time in all; measurements of tokens that would start later are left out."""

    def __post_init__(self):
        super().__post_init__()
        require(bool(self.commands), 'COMMANDS: name at least one training, e.g. "text --dim 512 --heads 8"')
        self.require_sizes("contexts")
        require(self.repeats >= 1, f"repeats={self.repeats}: must be at least 1")


def main(arguments: list[str]) -> None:
    """Measure and print a table."""
    cost = parse(ModelCost, arguments, "python benchmarks/model_cost.py")
    print(f"device: {backend.device()}")
    models = [(command, train.read_command(shlex.split(command))[0].settings) for command in cost.commands]
    end = time.perf_counter() + (cost.seconds or float("inf"))
    rows: list[dict[str, Any]] = []
    for command, settings in models:
        for row in measure(settings, cost, end):
            rows.append({"command": command, **row})
            print(json.dumps(rows[-1]), flush=True)
    folder = results_folder(cost.out)
    write_report(folder, "model_cost", {"rows": rows})
    print("", table(rows), "", f"report: {folder}", sep="\n")
    print(json.dumps(rows))


def measure(settings: RunConfig, cost: ModelCost, end: float) -> Iterator[dict[str, Any]]:
    """Measure a training step, then a token after each context; yield the reason for each one left out."""
    shape, training = settings.task.shape, settings.training
    config = settings.model_config(shape)
    benchmark = StepBenchmark(config, settings.model, "training", training.segment, settings.optimizer)
    timing = benchmark.measure(training.batch, shape.length, shape.targets, repeats=cost.repeats)
    tokens = training.batch * shape.length
    yield {
        "measured": "training step",
        "model": settings.model,
        "tokens": tokens,
        "multiply_adds": benchmark.executed(training.batch, shape.length, shape.targets),
        "ms": 1e3 * timing.seconds,
        "tokens_per_s": tokens / timing.seconds,
        "peak_gb": timing.peak_bytes / 1e9,
        "first_s": timing.first,
    }
    longest = max(cost.contexts) + 2 * TOKENS + WARM_UP
    model = make(settings.model, replace(config, dropout=0.0, attention_dropout=0.0, max_len=longest))
    parameters = count(model.parameters())
    method = RECURRENT if settings.model == "recurrent" else CACHED
    budget = cost.memory * 1e9 * backend.memory_gb()
    for context in sorted(cost.contexts):
        about = {"measured": "token", "model": settings.model, "context": context}
        if (needed := memory(method, model, context, 1)) > budget:
            yield about | {"left_out": f"would need about {needed / 1e9:,.1f} GB of {budget / 1e9:,.1f}"}
        elif time.perf_counter() > end:
            yield about | {"left_out": "the time was up"}
        else:
            yield about | asdict(continued(settings.model, model, context, 1)) | {"parameters": parameters}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a table with one line per measurement."""
    lines = []
    for row in rows:
        if "left_out" in row:
            text = f"context {row['context']:,}: left out ({row['left_out']})"
        elif row["measured"] == "token":
            text = f"context {row['context']:>7,}: {row['latency_ms']:.2f} ms/token, state {row['state_mb']:,.2f} MB"
        else:
            text = f"training: {row['ms']:.1f} ms, {row['tokens_per_s']:,.0f} tokens/s, {row['peak_gb']:.2f} GB"
        lines.append(f"{text}  [{row['command']}]")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
