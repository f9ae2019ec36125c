"""Parts of a report: programs that share a time limit. Each runs in its own process, so that one can fail alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GRACE = 20.0  # seconds between asking a program to stop and killing it
LEAST = 5.0  # seconds below which a part is not started
KEPT, LATE = 0.8, 3.0  # fractions of a part's time: the limit that it is given, and after which it is stopped
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit statuses of a program that was asked to stop


@dataclass(frozen=True, kw_only=True)
class Part:
    """A program and its share of the time."""

    name: str
    title: str
    words: Callable[[float], list[str]]
    """Returns Python's arguments, given the seconds that the part may take."""
    share: float
    """Its share of the time, relative to the other parts' shares."""
    endless: bool = False
    """Whether it runs until it is stopped, which is not a failure; otherwise it observes the limit itself."""
    missing: str | None = None
    """What it needs and this machine lacks; None if nothing."""
    pictures: tuple[str, ...] = ()
    """Files that it writes to the report's folder."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a part."""

    part: Part
    output: str = ""
    """Its output."""
    seconds: float = 0.0
    failure: str | None = None
    skipped: str | None = None
    stopped: bool = False
    """Whether it was stopped at the end of its time, as an endless part is."""

    @property
    def text(self) -> str:
        """The outcome in one line."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.failure:
            return f"**failed**: {self.failure}"
        return "stopped at the end of its time" if self.stopped else "done"


def carry_out(parts: Sequence[Part], seconds: float, say: Callable[[str], object]) -> Iterator[Outcome]:
    """Run parts one after the other; unused time of a part is shared by the following ones.

    Args:
        parts: in the order in which they run.
        seconds: time for all.
        say: called with the name of the next part.
    """
    end = time.perf_counter() + seconds
    for i, part in enumerate(parts):
        shares = sum(other.share for other in parts[i:] if not other.missing)
        share = (end - time.perf_counter()) * part.share / shares if shares else 0.0
        if part.missing:
            say(f"{part.name}:")
            yield Outcome(part, skipped=part.missing)
        elif share < LEAST:
            say(f"{part.name}:")
            yield Outcome(part, skipped="no time was left")
        else:
            say(f"{part.name}, up to {share:.0f} s:")
            yield run(part, share)


def run(part: Part, share: float) -> Outcome:
    """Run a part for ``share`` seconds in its own session, and kill everything left of the session afterwards."""
    began = time.perf_counter()
    command = [sys.executable, *part.words(share if part.endless else KEPT * share)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    limit, late = share if part.endless else LATE * share, False
    try:
        output, late = _wait(process, limit)
    finally:
        _send(process, signal.SIGKILL)
        process.wait()
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    failure = None
    if late and not part.endless:
        failure = f"took longer than {limit:.0f} s"
    elif process.returncode and not (late and process.returncode in STOPPED):
        failure = f"status {process.returncode}: {lines[-1].removeprefix('error: ')}"
    return Outcome(part, output, time.perf_counter() - began, failure, stopped=late and failure is None)


def _wait(process: subprocess.Popen, limit: float) -> tuple[str, bool]:
    """Return a process's output, and whether it had to be stopped at the limit."""
    for how, seconds in ((signal.SIGTERM, limit), (signal.SIGKILL, GRACE)):
        try:
            return process.communicate(timeout=seconds)[0], how == signal.SIGKILL
        except subprocess.TimeoutExpired:
            _send(process, how)
    return process.communicate()[0], True


def _send(process: subprocess.Popen, how: signal.Signals) -> None:
    """Send a signal to a process and its descendants, if any of them still run."""
    try:
        os.killpg(process.pid, how)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, for a process that is not yet waited for
        return
