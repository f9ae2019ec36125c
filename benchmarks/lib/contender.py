"""One contender of `peers`, timed in a process of its own.

Run with a request as its argument, it prints one line of JSON. MLX and PyTorch are imported where they are asked
for, so that neither is in the other's process.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lib.request import ContenderTiming, Request

BENCHMARKS = Path(__file__).parent.parent  # where `lib` is found
WORKER = [sys.executable, "-m", "lib.contender"]
LONGEST = 200  # letters of a reason


def call(request: Request) -> ContenderTiming | str:
    """`run` in a process of its own; a line that says why where nothing came back."""
    command = [*WORKER, json.dumps(asdict(request))]
    process = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, start_new_session=True)
    if process.returncode:
        *_, last = "no word of it", *process.stderr.splitlines()
        return _one_line(f"its process ended with {process.returncode}: {last}")
    came = json.loads(process.stdout.splitlines()[-1])
    return came if isinstance(came, str) else ContenderTiming(**came)


def run(request: Request) -> ContenderTiming | str:
    """Time the contender; a line that says why where it cannot run."""
    try:
        if request.contender == "mlx":
            return measure_mlx(request)
        from lib.torch_peer import measure

        return measure(request)
    except Exception as error:  # whatever ails one contender must not cost the others
        return _one_line(f"{type(error).__name__}: {error}")


def measure_mlx(request: Request) -> ContenderTiming:
    """Time this project's own model. Its package is imported before MLX, for which it loads a fast BLAS."""
    from mlx_rtx import ModelConfig
    from mlx_rtx.forecast.step_benchmark import StepBenchmark
    from mlx_rtx.support.backend import environment
    from mlx_rtx.training.recipes import TEXT_PAPER

    benchmark = StepBenchmark(
        ModelConfig(**request.config), request.model, request.mode, request.segment, TEXT_PAPER.optimizer
    )
    timing = benchmark.measure(request.batch, request.length, request.targets, repeats=request.repeats, shortest=0.0)
    made_with = environment()
    return ContenderTiming(
        seconds=timing.seconds,
        fastest=timing.fastest,
        slowest=timing.slowest,
        first=timing.first,
        peak_gb=timing.peak_bytes / 1e9,
        memory="peak of allocated memory",
        loss=None,
        ran_on=f"mlx {made_with['versions']['mlx']}, {made_with['device_name']} ({made_with['device']})",
    )


def _one_line(text: str) -> str:
    """``text`` without its line breaks, cut to a length that is read."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    outcome = run(Request(**json.loads(sys.argv[1])))
    print(json.dumps(outcome if isinstance(outcome, str) else asdict(outcome)))
