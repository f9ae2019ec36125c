"""One contender of `peers`, timed in a separate process.

The program takes a request as its argument and prints one line of JSON. It imports MLX or PyTorch only when needed, so
that the two never share a process.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lib.request import ContenderTiming, Request

BENCHMARKS = Path(__file__).parent.parent  # the folder that contains `lib`
WORKER = [sys.executable, "-m", "lib.contender"]
LONGEST = 200  # characters of a reason


def call(request: Request) -> ContenderTiming | str:
    """Call `run` in a separate process; return the reason in one line if it gives no timing."""
    command = [*WORKER, json.dumps(asdict(request))]
    process = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, start_new_session=True)
    if process.returncode:
        *_, last = "no message", *process.stderr.splitlines()
        return _one_line(f"its process ended with {process.returncode}: {last}")
    result = json.loads(process.stdout.splitlines()[-1])
    return result if isinstance(result, str) else ContenderTiming(**result)


def run(request: Request) -> ContenderTiming | str:
    """Time the contender; return the reason in one line if it cannot run."""
    try:
        if request.contender == "mlx":
            return measure_mlx(request)
        from lib.torch_peer import measure

        return measure(request)
    except Exception as error:  # the failure of one contender must not end the others
        return _one_line(f"{type(error).__name__}: {error}")


def measure_mlx(request: Request) -> ContenderTiming:
    """Time this project's model. The package is imported before MLX, because it loads a fast BLAS first."""
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
    """Return ``text`` without line breaks, truncated to ``LONGEST`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


if __name__ == "__main__":
    outcome = run(Request(**json.loads(sys.argv[1])))
    print(json.dumps(outcome if isinstance(outcome, str) else asdict(outcome)))
