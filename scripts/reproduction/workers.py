"""Parallel runs: one thread per job, which runs one process at a time until all runs are done or time is up."""

import os
import queue
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlx_rtx.support.stopping import stop_requests
from mlx_rtx.tasks.sources import VARIABLE

from reproduction.runs import Run, Stopped, carry_out

ROOT = Path(__file__).parent.parent.parent
GRACE = 120.0  # seconds that processes have to save and stop before they are killed


@dataclass
class Outcome:
    """Outcome of the runs, by name."""

    done: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Stopped before their end, or not started."""
    failed: dict[str, str] = field(default_factory=dict)
    """{name: reason}."""
    interrupted: int = 0
    """Signal that stopped the runs; 0 if none did."""


class Processes:
    """The running processes, which can be asked to stop and be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self.stopping = False

    def call(self, command: list[str], log: Path, gpu: str | None = None) -> int:
        """Run a command in the checkout, append its output to ``log``, and return its exit status.

        Raises:
            Stopped: `stop` was called before or during the command.
        """
        environment = dict(os.environ)
        if data := environment.get(VARIABLE):
            environment[VARIABLE] = os.path.abspath(data)  # relative to this working directory, not to the checkout
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with log.open("a") as output:
            with self._lock:
                if self.stopping:
                    raise Stopped
                # in our process group, so that a signal to the group ends all of them
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if self.stopping:
            raise Stopped
        return status

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Start no more processes, and send the running ones SIGTERM to save and stop, or SIGKILL.

        SIGINT is not used: a terminal has already sent it to all of them, and a second one makes them stop unsaved.
        """
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.send_signal(how)


def visible_gpus(count: int) -> list[str]:
    """Return the names of the first ``count`` GPUs, as in ``CUDA_VISIBLE_DEVICES``."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else list(map(str, range(count)))
    return gpus[:count]


def carry_out_all(runs: list[Run], jobs: int, gpus: list[str], seconds: float | None) -> Outcome:
    """Carry out ``runs``, ``jobs`` at a time. On a first stop request they save; a second one kills them.

    Args:
        runs: in the order in which they are started.
        jobs: number of parallel runs.
        gpus: GPUs that the jobs are distributed over, round robin; if empty, all use the default device.
        seconds: time after which all save and stop; None for no limit.
    """
    outcome, processes = Outcome(), Processes()
    waiting: queue.SimpleQueue[Run] = queue.SimpleQueue()
    for run in runs:
        waiting.put(run)
    begun = time.perf_counter()
    threads = [
        threading.Thread(target=_work, args=(waiting, processes, outcome, gpus[i % len(gpus)] if gpus else None))
        for i in range(min(jobs, len(runs)))
    ]
    with stop_requests(again=False) as requests:
        for thread in threads:
            thread.start()
        heard, stopped_at = 0, 0.0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
            if processes.stopping:
                if len(requests) > heard or time.perf_counter() - stopped_at > GRACE:
                    processes.stop(signal.SIGKILL)
            elif requests or (seconds is not None and time.perf_counter() - begun > seconds):
                heard, stopped_at, outcome.interrupted = len(requests), time.perf_counter(), (requests or [0])[0]
                print("stopping: running jobs save their state; run the same command again to continue", flush=True)
                processes.stop()
    while not waiting.empty():
        outcome.stopped.append(waiting.get().name)
    return outcome


def _work(waiting: "queue.SimpleQueue[Run]", processes: Processes, outcome: Outcome, gpu: str | None) -> None:
    """Carry out waiting runs in one thread, until there are none left or all are stopped."""
    while not processes.stopping:
        try:
            run = waiting.get_nowait()
        except queue.Empty:
            return
        say = partial(_say, run.name + (f" (GPU {gpu})" if gpu is not None else ""))
        try:
            carry_out(run, partial(processes.call, gpu=gpu), say)
            outcome.done.append(run.name)
        except Stopped:
            say("stopped")
            outcome.stopped.append(run.name)
        except Exception as error:  # in this run only: the others continue
            say(f"failed: {error}")
            outcome.failed[run.name] = str(error) or type(error).__name__


def _say(name: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {text}\n", end="", flush=True)  # one write: several threads print
