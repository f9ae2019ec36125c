"""Start ranks on this machine with the environment that ``mlx.launch`` sets, and end them when their time is up."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backend = Literal["nccl", "ring"]
GRACE = 3.0  # seconds in which the others must end after one has failed


@dataclass(frozen=True)
class RanksOutput:
    """Output of the ranks."""

    out: str
    """Standard output of the first rank."""
    failure: str | None
    """The failure in one line; None if there was none."""


def run_ranks(command: Sequence[str], size: int, backend: Backend, seconds: float, cwd: Path) -> RanksOutput:
    """Run a command as ``size`` ranks for at most ``seconds``; kill each rank's session afterwards."""
    found_in = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)  # absolute, because of ``cwd``
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as files:
        folder = Path(made)
        kept = [files.enter_context((folder / f"{rank}.{name}").open("w+")) for rank in range(size) for name in "oe"]
        ranks = [
            subprocess.Popen(
                command, cwd=cwd, env={**os.environ, "PYTHONPATH": found_in, **environment}, stdin=subprocess.DEVNULL,
                stdout=kept[2 * rank], stderr=kept[2 * rank + 1], start_new_session=True,
            )
            for rank, environment in enumerate(environments(size, backend, folder))
        ]  # fmt: skip
        try:
            failure = _wait(ranks, time.monotonic() + seconds)
        finally:
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
        errors = [(folder / f"{rank}.e").read_text(errors="replace").strip() for rank in range(size)]
        if failure:
            failure = " | ".join([failure, *dict.fromkeys(text.splitlines()[-1] for text in errors if text)])
        return RanksOutput((folder / "0.o").read_text(errors="replace"), failure)


def environments(size: int, backend: Backend, folder: Path) -> list[dict[str, str]]:
    """Return the variables to set for each rank; with NCCL each sees one GPU."""
    if size == 1:
        return [{"CUDA_VISIBLE_DEVICES": _visible()[0]}] if backend == "nccl" else [{}]
    ports = _free_ports(size)
    if backend == "ring":
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(size)]
    world = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(ports[0]), "MLX_WORLD_SIZE": str(size)}
    return [{**world, "MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": _visible()[rank]} for rank in range(size)]


def _visible() -> list[str]:
    """Return names of GPUs; there may be fewer GPUs than names."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(64)))).split(",")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


def _wait(ranks: list[subprocess.Popen], end: float) -> str | None:
    """Wait until all ranks have ended, the time is up, or ``GRACE`` is over after a failure; return the failure."""
    while any(rank.poll() is None for rank in ranks):
        if time.monotonic() > end:
            return "the time was up"
        if any(rank.poll() for rank in ranks):
            end = min(end, time.monotonic() + GRACE)
        time.sleep(0.05)
    failed = [f"rank {i} ended with {rank.returncode}" for i, rank in enumerate(ranks) if rank.returncode]
    return ", ".join(failed) or None
