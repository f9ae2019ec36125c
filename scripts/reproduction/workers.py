"""Runs side by side: a thread a job, each waiting for one process at a time, until all is done or time is up."""

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
GRACE = 120.0  # seconds that a process has to save and stop


@dataclass
class Outcome:
    """What became of the runs, by name."""

    done: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Stopped before their end, or not begun."""
    failed: dict[str, str] = field(default_factory=dict)
    """With the reason."""
    interrupted: int = 0
    """By which signal, if not by time."""


class Processes:
    """The processes under way, which can be asked to stop, and then made to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self.stopping = False

    def call(self, command: list[str], log: Path, gpu: str | None = None) -> int:
        """Run a command in the checkout, its output at the end of ``log``; give its exit status.

        Raises:
            Stopped: all was asked to stop, before or meanwhile.
        """
        environment = dict(os.environ)
        if data := environment.get(VARIABLE):
            environment[VARIABLE] = os.path.abspath(data)  # as it is meant here, not in the checkout
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with log.open("a") as output:
            with self._lock:
                if self.stopping:
                    raise Stopped
                # of our process group, so that whatever ends all of it leaves none behind
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        if self.stopping:
            raise Stopped
        return status

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Begin nothing more; let what runs save and stop, or end it at once by ``SIGKILL``.

        Not by SIGINT: a terminal has sent that to all already, and who sends it again insists.
        """
        with self._lock:
            self.stopping = True
            for process in self._running:
                process.send_signal(how)


def visible_gpus(count: int) -> list[str]:
    """The first ``count`` GPUs as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else list(map(str, range(count)))
    return gpus[:count]


def carry_out_all(runs: list[Run], jobs: int, gpus: list[str], seconds: float | None) -> Outcome:
    """Carry out ``runs``, ``jobs`` at a time. The first request to stop lets them save, a second one does not.

    Args:
        runs: in the order in which they are begun.
        jobs: how many run side by side.
        gpus: what jobs are dealt out to in turn; where empty, the default device has all.
        seconds: time after which all save and stop; none if not given.
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
                print("stopping: what runs saves itself; the same command goes on", flush=True)
                processes.stop()
    while not waiting.empty():
        outcome.stopped.append(waiting.get().name)
    return outcome


def _work(waiting: "queue.SimpleQueue[Run]", processes: Processes, outcome: Outcome, gpu: str | None) -> None:
    """One job: take runs and carry them out, until there are none or all is to stop."""
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
        except Exception as error:  # of a single run: the others go on
            say(f"failed: {error}")
            outcome.failed[run.name] = str(error) or type(error).__name__


def _say(name: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {text}\n", end="", flush=True)  # whole, with many threads at it
