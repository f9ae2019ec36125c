"""Cost of generating a token: the recurrent model compared with a regular one of the same loss.

    python benchmarks/generation.py --batches 1 8 --contexts 256 4096

Uses the paper's Shakespeare models (Table 6: recurrent, and regular with 6 layers, both with loss 1.47) with random
weights, because time does not depend on their values. After contexts of increasing length each model generates tokens:
the recurrent one from its state, the regular one from its key-value cache, and by recomputing the whole text for every
token. Two figures are measured: latency, waiting for every token, and throughput, with the device one token ahead.
Prints a table, a comparison in words and one line of JSON, and draws a picture.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx_rtx import ModelConfig
from mlx_rtx.forecast.memory import forward_memory
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelKind
from mlx_rtx.model.registry import MODELS
from mlx_rtx.plots.figures import COLOURS, DASHES, doubling, new_axes
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import add_picture, write_report
from mlx_rtx.support.trees import arrays
from mlx_rtx.training.recipes import TEXT

import mlx.core as mx

from lib.budget import Budget
from lib.machine_results import results_folder

LAYERS = 6  # of the regular transformer with the same loss as the recurrent one
PREFILL = 512  # tokens of a context per call
WARM_UP, TOKENS = 4, 64  # tokens generated before the timing, and timed tokens
RECURRENT, CACHED, RECOMPUTED = "recurrent", "regular-6, cached", "regular-6, recomputed"


@dataclass(frozen=True, kw_only=True)
class Generation(Budget):
    """Measure the time per token for context lengths and batch sizes."""

    contexts: tuple[int, ...] = (256, 1024, 4096, 16384, 65536)
    """Numbers of tokens before the timed ones."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Batch sizes: texts generated in parallel."""
    seconds: float = 300.0
    """Approximate time for all points together."""

    def __post_init__(self):
        super().__post_init__()
        self.require_sizes("contexts", "batches")


@dataclass(frozen=True)
class Row:
    """Measurement of a method at a context length and batch size."""

    method: str
    context: int
    batch: int
    latency_ms: float  # median
    latency_ms_slowest: float
    tokens_per_s: float
    peak_gb: float
    state_mb: float  # kept between two tokens, for all texts


def main(arguments: list[str]) -> None:
    """Measure and print the cost of a token."""
    generation = parse(Generation, arguments, "python benchmarks/generation.py")
    print(f"device: {backend.device()}")
    rows: list[Row] = []
    left_out: list[str] = []
    for result in measure(generation):
        if isinstance(result, Row):
            rows.append(result)
            print(line(result), flush=True)
        else:
            left_out.append(result)
            print(result, flush=True)
    require(bool(rows), "generation: nothing could be measured; give it more --seconds or --memory")
    folder = results_folder(generation.out)
    write_report(folder, "generation", {"left_out": left_out, "rows": [asdict(row) for row in rows]})
    add_picture(folder, "generation", lambda: picture(rows))
    answer = compare(rows)
    print("", words(answer), "", f"report: {folder}", sep="\n")
    print(json.dumps(answer))


def measure(generation: Generation) -> Iterator[Row | str]:
    """Yield a row for each method, context and batch, or the reason why it was left out."""
    end, budget = time.perf_counter() + generation.seconds, generation.memory * 1e9 * backend.memory_gb()
    took: dict[tuple[str, int], tuple[int, float]] = {}  # per method and batch: the last context and its seconds
    longest = max(generation.contexts) + 2 * TOKENS + WARM_UP
    config = replace(TEXT.model_config(TEXT.task.shape), dropout=0.0, max_len=longest)
    recurrent = make("recurrent", config)
    regular = make("regular", replace(config, layers=LAYERS))
    ways: list[tuple[str, Transformer, Callable]] = [
        (RECURRENT, recurrent, continued),
        (CACHED, regular, continued),
        (RECOMPUTED, regular, recomputed),
    ]
    for context in sorted(generation.contexts):
        for batch in sorted(generation.batches):
            for method, model, way in ways:
                needed = memory(method, model, context, batch)
                before, seconds = took.get((method, batch), (context, 0.0))
                expected = seconds * (context / before) ** (2 if method == RECOMPUTED else 1)
                name = f"{method}, context {context:,}, batch {batch}"
                if needed > budget:
                    yield f"{name} left out: would need about {needed / 1e9:,.1f} GB of {budget / 1e9:,.1f}"
                elif expected > end - time.perf_counter():
                    yield f"{name} left out: would take about {expected:,.0f} s"
                else:
                    clock = time.perf_counter()
                    yield way(method, model, context, batch)
                    took[method, batch] = context, time.perf_counter() - clock


def make(kind: ModelKind, config: ModelConfig) -> Transformer:
    """Return a model with random weights."""
    model = MODELS[kind](config)
    model.eval()
    mx.eval(model.parameters())
    return model


def memory(method: str, model: Transformer, context: int, batch: int) -> float:
    """Predict the peak memory of a method in bytes: a forward pass, or twice the cache plus attention scores."""
    config = model.config
    if method == RECOMPUTED:
        return forward_memory(config, context + TOKENS, batch, 1, "regular").peak
    if method == RECURRENT:
        return forward_memory(config, PREFILL, batch).peak
    cache = 8 * batch * config.layers * config.dim * (context + 2 * TOKENS + PREFILL)
    return 2 * cache + 8 * batch * config.heads * PREFILL * (context + PREFILL)


def continued(method: str, model: Transformer, context: int, batch: int) -> Row:
    """Feed a context, then time generation from the resulting state."""
    tokens = mx.random.randint(0, model.config.vocab_size, (batch, context), key=mx.random.key(context))
    state, parameters = model.initial_state(batch), model.parameters()
    logits = mx.zeros((batch, 1, 1))
    for start in range(0, context, PREFILL):
        logits, state = model.feed(tokens[:, start : start + PREFILL], state, parameters)
        mx.eval(logits, state)
    held = {"token": mx.argmax(logits[:, -1], axis=-1)[:, None], "state": state}
    del state  # so that the cache can be updated in place

    def step() -> mx.array:
        logits, held["state"] = model.feed(held["token"], held["state"], parameters)
        held["token"] = mx.argmax(logits[:, -1], axis=-1)[:, None]
        mx.async_eval(held["token"], held["state"])
        return held["token"]

    return timed(step, method, context, batch, lambda: held["state"])


def recomputed(method: str, model: Transformer, context: int, batch: int) -> Row:
    """Time generation that runs the model on the whole text for every token."""
    held = mx.random.randint(0, model.config.vocab_size, (batch, context), key=mx.random.key(context))

    def step() -> mx.array:
        token = mx.argmax(model(held, last=1)[:, -1], axis=-1)[:, None]
        mx.async_eval(token)
        return token

    return timed(step, method, context, batch, lambda: [])


def timed(step: Callable[[], mx.array], method: str, context: int, batch: int, state: Callable[[], Any]) -> Row:
    """Time tokens, first waiting for each one, then with one more always queued."""
    for _ in range(WARM_UP):
        mx.eval(step())
    mx.reset_peak_memory()
    latencies = []
    for _ in range(TOKENS):
        clock = time.perf_counter()
        mx.eval(step())
        latencies.append(1e3 * (time.perf_counter() - clock))
        if len(latencies) >= 5 and sum(latencies) > 10_000:  # slow steps need only a few timings
            break
    clock, before = time.perf_counter(), step()
    for _ in range(len(latencies) - 1):
        after = step()
        mx.eval(before)
        before = after
    mx.eval(before)
    seconds = (time.perf_counter() - clock) / len(latencies)
    kept = sum(array.nbytes for array in arrays(state()))
    return Row(
        method=method,
        context=context,
        batch=batch,
        latency_ms=statistics.median(latencies),
        latency_ms_slowest=max(latencies),
        tokens_per_s=batch / seconds,
        peak_gb=mx.get_peak_memory() / 1e9,
        state_mb=kept / 1e6,
    )


def line(row: Row) -> str:
    """Return a row as text."""
    return (
        f"{row.method:22} context {row.context:>6,} batch {row.batch:>3}: {row.latency_ms:>9.2f} ms per token "
        f"(slowest {row.latency_ms_slowest:.2f}), {row.tokens_per_s:>9,.0f} tokens/s, {row.peak_gb:.3f} GB, "
        f"state {row.state_mb:,.2f} MB"
    )


def compare(rows: list[Row]) -> list[dict]:
    """Return the recurrent model's tokens per second and its ratio to the others, at each context and batch."""
    found = {(row.method, row.context, row.batch): row.tokens_per_s for row in rows}
    compared = []
    for (method, context, batch), own in found.items():
        if method == RECURRENT:
            others = {other: found.get((other, context, batch)) for other in (CACHED, RECOMPUTED)}
            times = {other: own / theirs for other, theirs in others.items() if theirs}
            compared.append({"context": context, "batch": batch, "tokens_per_s": own, **times})
    return compared


def words(answer: list[dict]) -> str:
    """Return the comparison in words."""
    lines = []
    for row in answer:
        times = [f"{row[other]:,.1f} times {other}" for other in (CACHED, RECOMPUTED) if other in row]
        versus = ", ".join(times) or "others were left out"
        lines.append(
            f"context {row['context']:,}, batch {row['batch']}: recurrent {row['tokens_per_s']:,.0f} tokens/s; {versus}"
        )
    return "\n".join(lines)


def picture(rows: list[Row]) -> Any:
    """Draw milliseconds per token over context length, one panel per batch size."""
    batches = sorted({row.batch for row in rows})
    figure, axes = new_axes(1, len(batches), sharey=True)
    for axis, batch in zip(axes[0], batches, strict=True):
        for i, method in enumerate((RECURRENT, CACHED, RECOMPUTED)):
            here = sorted((row for row in rows if row.batch == batch and row.method == method), key=lambda r: r.context)
            look = {"color": COLOURS[i], "ls": DASHES[i], "marker": "o", "ms": 3}
            axis.loglog([r.context for r in here], [1e3 * r.batch / r.tokens_per_s for r in here], label=method, **look)
        doubling(axis, (row.context for row in rows))
        axis.set_title(f"batch {batch}")
        axis.set_xlabel("context (tokens)")
    axes[0, 0].set_ylabel("ms per token of each text")
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run_command(main)
