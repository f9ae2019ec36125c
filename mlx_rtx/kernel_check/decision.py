"""Whether training uses kernels: by the verdict on this machine, which the first training waits for.

The check runs in a process of its own, with limits. What it cannot survive, a crash of the process or of the whole
machine, it has written down as begun; so it is not tried a second time.
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
PAUSE = 2.0  # seconds after a process was killed, which its work on the GPU may outlast
Say = Callable[[str], object]


@dataclass(frozen=True)
class Decision:
    """What a run's kernels are, and how that came about."""

    form: Form | None = None
    """By which kernels run; None for plain operations, or where no check was asked for."""
    key: str | None = None
    """Of the question that was asked; None where there was none."""
    text: str | None = None
    """One line for people."""

    @property
    def stored(self) -> dict[str, Any] | None:
        """What a run folder keeps, so that the run goes on by the same kernels."""
        return None if self.key is None else {"key": self.key, "form": self.form}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let models run so meanwhile; where the GPU then fails, kernels like these are never used again.

        Raises:
            UserError: it failed.
        """
        kernels.choose(self.form)
        try:
            yield
        except RuntimeError as error:
            if self.form is None or self.key is None or not _is_of_gpu(error):
                raise
            file = VerdictFile.named(self.key)
            if verdict := file.read():
                fail(file, verdict, f"a training broke off ({error})")
            raise UserError(
                f"the GPU failed while kernels ran ({error}); trainings like this take plain operations from now on, "
                f"as all do with {kernels.VARIABLE}=0; add --resume to go on"
            ) from error
        finally:
            kernels.choose(None)


def decide(
    model: ModelKind, architecture: Architecture, batch: int, before: dict[str, Any] | None, say: Say
) -> Decision:
    """The kernels of a training run.

    Args:
        model, architecture, batch: what it trains.
        before: what the run's folder keeps of an earlier decision; the run goes on as it began where it can.
        say: told that there is something to wait for.
    """
    if not (
        model == "recurrent" and architecture.fusible and kernels.asked() == "auto" and mx.default_device() == mx.gpu
    ):
        return Decision()
    question = ask(architecture, batch)
    if "paravirtual" in question.chip.lower():
        return Decision(text="plain operations: kernels are not tried on a virtual GPU")
    file = VerdictFile.named(question.key)
    verdict = file.read()
    if before and before["key"] == question.key and not (verdict and verdict.failure):
        form = before["form"] and Form(*before["form"])
        return Decision(form, question.key, f"{form or 'plain operations'}, as the run began")
    if verdict is None or not verdict.complete:
        say("kernels: trying them on this machine, once for models like this, for up to two minutes")
        verdict = settle(file, question)
        if verdict is None:
            return Decision(None, question.key, "plain operations: another process is trying kernels right now")
    return Decision(verdict.form, question.key, describe(verdict))


def describe(verdict: Verdict) -> str:
    """What was found, in a line."""
    seconds = f"tried for {verdict.took:.0f} s"
    wrong = "; ".join(f"{trial.form} {trial.failure}" for trial in verdict.trials if trial.failure)
    notes = f"{seconds}; {wrong}" if wrong else seconds
    if verdict.failure:
        return f"plain operations: {verdict.failure}"
    if not verdict.right:
        return f"plain operations: no kernel is right here ({notes})"
    if verdict.ratio is None:
        return (
            f"plain operations: kernels are right, but {verdict.untimed} ({notes}); the next training times them again"
        )
    if verdict.form is None:
        return f"plain operations: kernels take {verdict.ratio:.2f} of their time ({notes})"
    return (
        f"{verdict.form}: {verdict.ratio:.2f} of the time of plain operations ({notes}); {kernels.VARIABLE}=0 for those"
    )


def settle(
    file: VerdictFile, question: Question, limit: float = LIMIT, worker: Sequence[str] = WORKER
) -> Verdict | None:
    """Have a process try kernels, and give the verdict; None while another process does.

    A failed check stands as failed. One that somebody stops is as if it had never begun.

    Args:
        file: where the verdict is, or will be.
        question: what it is on.
        limit: seconds that compiling may take, and again all the rest.
        worker: the process, to which file and limit are added.
    """
    with file.lock() as lock:
        if lock is None:
            return None
        verdict = file.read() or Verdict(question)
        if verdict.complete:
            return verdict
        if verdict.stage is not None:
            return fail(file, verdict, f"a check ended in the midst of it ({verdict.stage})")
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
    """Whether it is the GPU that says so, and not for want of memory."""
    text = str(error).lower()
    return ("[metal]" in text or "cuda" in text) and "memory" not in text


def fail(file: VerdictFile, verdict: Verdict, failure: str) -> Verdict:
    """Put down that kernels are not to be used for this question any more."""
    return file.write(replace(verdict, stage=None, form=None, failure=f"{failure}; to try again remove {file.path}"))


def _watch(file: VerdictFile, command: Sequence[str], limit: float, lock: int, stops: list[int]) -> str | None:
    """Run the process within its limits, until somebody asks to stop; why it failed, if it did."""
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
        said = errors.read().split("\n")
    now = file.read()
    if process.returncode or now is None or now.stage:
        last = next((line for line in reversed(said) if line.strip()), "without a word")
        return f"a check ended with status {process.returncode} ({(now and now.stage) or stage}): {last[:300]}"
    return None
