"""Decides whether a training uses kernels, from the verdict of a check on this machine.

The first training waits for the check, which runs in a separate process with a time limit. The check records each stage
on disk before it starts, so that a stage that crashes the process or the whole machine is not repeated.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mlx_rtx import kernels
from mlx_rtx.kernel_check.verdict import Question, Verdict, VerdictFile, ask
from mlx_rtx.kernel_check.worker import COMPILING, LIMIT
from mlx_rtx.kernels import Form
from mlx_rtx.model.config import Architecture, ModelKind
from mlx_rtx.support.errors import UserError
from mlx_rtx.support.stopping import stop_requests

import mlx.core as mx

WORKER = (sys.executable, "-m", "mlx_rtx.kernel_check.worker")
PAUSE = 2.0  # seconds to wait after a process was killed, because its work on the GPU may still be running
Say = Callable[[str], object]


@dataclass(frozen=True)
class Decision:
    """Which kernels a run uses, and why."""

    form: Form | None = None
    """Form of the kernels; None for plain operations, or if no check was needed."""
    key: str | None = None
    """Key of the question that was checked; None if no check was needed."""
    text: str | None = None
    """One line for the user."""

    @property
    def stored(self) -> dict[str, Any] | None:
        """Values to store in the run folder, so that a resumed run uses the same kernels."""
        return None if self.key is None else {"key": self.key, "form": self.form}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Context manager: use the chosen form; if the GPU fails meanwhile, never use these kernels again.

        Raises:
            UserError: if the GPU failed.
        """
        kernels.choose(self.form)
        try:
            yield
        except RuntimeError as error:
            if self.form is None or self.key is None or not _is_of_gpu(error):
                raise
            file = VerdictFile.named(self.key)
            if verdict := file.read():
                fail(file, verdict, f"a training failed ({error})")
            raise UserError(
                f"the GPU failed while kernels ran ({error}); from now on trainings like this use plain operations, "
                f"as all do with {kernels.VARIABLE}=0; continue with --resume"
            ) from error
        finally:
            kernels.choose(None)


def decide(
    model: ModelKind, architecture: Architecture, batch: int, before: dict[str, Any] | None, say: Say
) -> Decision:
    """Decide which kernels a training run uses.

    Args:
        model, architecture, batch: settings of the training.
        before: earlier decision stored in the run folder, which a resumed run follows if possible.
        say: function that prints a line, called before a check that takes time.
    """
    if not (
        model == "recurrent" and architecture.fusible and kernels.mode() == "auto" and mx.default_device() == mx.gpu
    ):
        return Decision()
    question = ask(architecture, batch)
    if "paravirtual" in question.chip.lower():
        return Decision(text="plain operations: kernels are not checked on a virtual GPU")
    file = VerdictFile.named(question.key)
    verdict = file.read()
    if before and before["key"] == question.key and not (verdict and verdict.failure):
        form = before["form"] and Form(*before["form"])
        return Decision(form, question.key, f"{form or 'plain operations'}, as at the start of the run")
    if verdict is None or not verdict.complete:
        say("kernels: checking them on this machine, once for models like this, for up to two minutes")
        verdict = settle(file, question)
        if verdict is None:
            return Decision(None, question.key, "plain operations: another process is checking kernels")
    return Decision(verdict.form, question.key, describe(verdict))


def describe(verdict: Verdict) -> str:
    """Return the verdict as one line of text."""
    seconds = f"checked for {verdict.took:.0f} s"
    wrong = "; ".join(f"{trial.form} {trial.failure}" for trial in verdict.trials if trial.failure)
    notes = f"{seconds}; {wrong}" if wrong else seconds
    if verdict.failure:
        return f"plain operations: {verdict.failure}"
    if not verdict.correct:
        return f"plain operations: no kernel is correct here ({notes})"
    if verdict.ratio is None:
        return f"plain operations: kernels are correct, but {verdict.untimed} ({notes}); the next training repeats this"
    if verdict.form is None:
        return f"plain operations: kernels take {verdict.ratio:.2f} of their time ({notes})"
    off = f"{kernels.VARIABLE}=0"
    return f"{verdict.form}: {verdict.ratio:.2f} of the time of plain operations ({notes}); {off} turns them off"


def settle(
    file: VerdictFile, question: Question, limit: float = LIMIT, worker: Sequence[str] = WORKER
) -> Verdict | None:
    """Return the verdict on ``question``, after a check in another process if needed; None while another check runs.

    A failed check is recorded as a failure. A check that the user interrupts leaves no trace.

    Args:
        file: file of the verdict, which may not exist yet.
        question: subject of the verdict.
        limit: time limit in seconds, for compiling and again for running.
        worker: command of the process; the file's path and the limit are appended.
    """
    with file.lock() as lock:
        if lock is None:
            return None
        verdict = file.read() or Verdict(question)
        if verdict.complete:
            return verdict
        if verdict.stage is not None:
            return fail(file, verdict, f"an earlier check ended unexpectedly ({verdict.stage})")
        file.write(replace(verdict, stage="start"))
        with stop_requests(again=False) as stops:
            failure = _watch(file, [*worker, str(file.path), str(limit)], limit, lock, stops)
            time.sleep(PAUSE if failure else 0)
        if stops:
            file.write(verdict)
            signal.raise_signal(stops[0])
        found = file.read() or verdict
        if failure is None:
            return found
        mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))  # the GPU must still answer
        return fail(file, found, failure)


def _is_of_gpu(error: RuntimeError) -> bool:
    """Return whether the error comes from the GPU and is not an out-of-memory error."""
    text = str(error).lower()
    return ("[metal]" in text or "cuda" in text) and "memory" not in text


def fail(file: VerdictFile, verdict: Verdict, failure: str) -> Verdict:
    """Record that kernels must no longer be used for this question."""
    return file.write(replace(verdict, stage=None, form=None, failure=f"{failure}; to check again delete {file.path}"))


def _watch(file: VerdictFile, command: Sequence[str], limit: float, lock: int, stops: list[int]) -> str | None:
    """Run the process until it ends, exceeds a limit or the user interrupts; return why it failed, or None."""
    environment = os.environ | {kernels.VARIABLE: "1"}
    stage, compiling, since = "start", True, time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, pass_fds=[lock], stdout=errors, stderr=errors)
        try:
            while process.poll() is None:
                if stops:
                    return None
                now = file.read()
                stage = (now and now.stage) or stage
                if compiling and not stage.startswith(("start", COMPILING)):
                    compiling, since = False, time.perf_counter()
                if time.perf_counter() - since > limit:
                    return f"a check took longer than {limit:g} s ({stage})"
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        lines = errors.read().split("\n")
    now = file.read()
    if process.returncode or now is None or now.stage:
        last = next((line for line in reversed(lines) if line.strip()), "no output")
        return f"a check ended with status {process.returncode} ({(now and now.stage) or stage}): {last[:300]}"
    return None
