"""Cost of a token after a thousand and after a million tokens: time and memory of generation along one stream.

    python benchmarks/generation_length.py --model runs/text --tokens 1000000

Generates tokens one by one. At 1e3, 1e4, … tokens it records MLX's peak memory since the previous mark and the memory
of the process, and keeps the state. Then it continues from each state in turn, for several rounds, and prints the
median time per token; alternating makes other load on the machine affect all states equally. Without --model it uses
random weights with the text recipe's sizes, because time does not depend on their values. The last line is JSON.
"""

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx import load, make_sampler
from mlx_rtx.generation.decoding import token_stream
from mlx_rtx.generation.stream import Stream
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import write_report
from mlx_rtx.training.recipes import TEXT

import mlx.core as mx

from lib.machine_results import results_folder

FIRST = 1000  # tokens at the first mark
ROUNDS, BLOCKS = 40, 4  # timings of each state, and blocks of tokens per timing


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure time and memory of generation along one stream."""

    model: Path | None = None
    """Run folder of a text model; random weights with the text recipe's sizes if not given."""
    kind: str = "recurrent"
    """Kind of the model without --model: recurrent or regular."""
    tokens: int = 100_000
    """Tokens to generate."""
    batch: int = 1
    """Number of parallel streams."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require_positive(self, "batch")
        require_at_most(self, batch=2**20, tokens=2**31)
        require(self.tokens >= FIRST, f"tokens={self.tokens}: must be at least {FIRST}")
        require(self.kind in MODELS, f"kind={self.kind}: must be one of {', '.join(MODELS)}")


def main(arguments: list[str]) -> None:
    """Generate, time, and print one line per power of ten."""
    command = parse(Benchmark, arguments, "python benchmarks/generation_length.py")
    if command.model:
        model, _ = load(command.model)
    else:
        model = MODELS[command.kind](TEXT.model_config(TEXT.task.shape))
        model.eval()
    states, rows = generate(model, command)
    durations = continue_from(model, command, states)
    print(f"{'tokens':>9} {'µs per token':>13} {'peak MB':>9} {'process MB':>11}")
    for row, timings in zip(rows, durations, strict=True):
        row["us_per_token"] = 1e6 * statistics.median(timings)
        print("{tokens:>9,} {us_per_token:>13.1f} {peak_mb:>9.2f} {process_mb:>11.1f}".format(**row))
    ratio = rows[-1]["us_per_token"] / rows[0]["us_per_token"]
    print(f"a token after {rows[-1]['tokens']:,} costs {ratio:.3f} times one after {rows[0]['tokens']:,}")
    answer = {"batch": command.batch, "ratio": ratio, "rows": rows}
    write_report(results_folder(command.out), "generation_length", answer)
    print(json.dumps(answer))


def generate(model: Transformer, command: Benchmark) -> tuple[list[Stream], list[dict]]:
    """Return the states at 1e3, 1e4, … tokens, and the memory in use until then."""
    states, rows, mark, started = [], [], FIRST, time.perf_counter()
    seeds = range(command.batch)
    tokens = token_stream(model, [[0]] * command.batch, command.tokens, make_sampler(temp=0.8), seeds)
    for done, (_, stream) in enumerate(tokens, 1):
        if done == mark:
            rows.append({"tokens": done, "peak_mb": mx.get_peak_memory() / 1e6, "process_mb": process_mb()})
            states.append(stream)
            mark *= 10
            print(f"{done:,} tokens after {time.perf_counter() - started:,.0f} s", file=sys.stderr)
            mx.reset_peak_memory()
    return states, rows


def continue_from(model: Transformer, command: Benchmark, states: list[Stream]) -> list[list[float]]:
    """Return ``ROUNDS`` timings of each state, in seconds per token."""
    durations: list[list[float]] = [[] for _ in states]
    empty: list[list[int]] = [[]] * command.batch
    seeds = range(command.batch)
    stretch = BLOCKS * model.config.block
    for _ in range(ROUNDS):
        for timings, state in zip(durations, states, strict=True):
            clock = time.perf_counter()
            for _ in token_stream(model, empty, stretch, make_sampler(temp=0.8), seeds, state):
                pass
            timings.append((time.perf_counter() - clock) / stretch)
    return durations


def process_mb() -> float:
    """Return the current memory of the process (Linux) or its peak (other systems)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 1e6 if sys.platform == "darwin" else most / 1e3


if __name__ == "__main__":
    run_command(main)
