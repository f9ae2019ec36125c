"""Process that checks kernels: ``python -m mlx_rtx.kernel_check.worker VERDICT_FILE LIMIT``, started by `decision`.

As a separate process it cannot crash the program that started it. It records each stage in the file before it starts.
"""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_rtx.kernel_check.trials import LEAST_TOLERANCE, SLACK, Contender, Rates, candidates, deviation, rates_to_try
from mlx_rtx.kernel_check.verdict import Trial, Verdict, VerdictFile
from mlx_rtx.kernels import Form, source
from mlx_rtx.kernels.scan import LONGEST_LAUNCH

import mlx.core as mx

COMPILING = "compile"  # prefix of the stages to which the compile-time limit applies
LIMIT = 60.0  # seconds for compiling, and again for running, after which this process is killed
ENOUGH_COMPILING, ENOUGH = 1 / 3, 2 / 3  # fractions of it after which no further form is compiled, or timed
REPEATS, ROUNDS, WINDOWS = 20, 5, (1, 2, 4, 8)
STEADY = 0.15  # maximum relative spread of valid timings
FASTER = 0.9  # maximum time of a form that is used, relative to plain operations


class Check:
    """Check of all forms in stages, each recorded in the file before it starts."""

    def __init__(self, file: VerdictFile, verdict: Verdict, limit: float = LIMIT):
        self.file, self.verdict, self.limit = file, verdict, limit
        self.parent, self.started = os.getppid(), time.perf_counter()
        self.compiled = self.started
        self._plain: dict[Rates, tuple[dict[str, mx.array], float]] = {}

    def begin(self, stage: str) -> None:
        """Record the stage that is about to start; exit if the parent process has ended."""
        if os.getppid() != self.parent:
            sys.exit("the parent process has ended")
        self.verdict = self.file.write(replace(self.verdict, stage=stage))

    def store(self, trial: Trial) -> None:
        """Store the results for a form, in place of earlier ones."""
        others = (other for other in self.verdict.trials if other.form != trial.form)
        self.verdict = replace(self.verdict, trials=(*others, trial))

    def result(self, form: Form) -> Trial:
        """Return the results for a form so far."""
        return next((trial for trial in self.verdict.trials if trial.form == form), Trial(form))

    def run(self) -> None:
        """Run all stages; forms that an earlier check found correct are only compiled and timed."""
        known = bool(self.verdict.trials)
        for form in [trial.form for trial in self.verdict.correct] if known else candidates(self.verdict.question):
            if time.perf_counter() > self.started + ENOUGH_COMPILING * self.limit:
                break
            self.begin(f"{COMPILING} {form}")
            self.attempt(form, self.compile)
        self.compiled = time.perf_counter()
        for trial in [] if known else self.verdict.correct:
            self.begin(f"run {trial.form}")
            self.attempt(trial.form, self.verify)
        if saves_power():
            self.verdict = replace(self.verdict, untimed="the Mac is in low power mode")
        elif self.verdict.correct:
            self.time_all()
        took = self.verdict.took + time.perf_counter() - self.started
        self.verdict = self.file.write(replace(self.verdict, stage=None, took=took))

    def attempt(self, form: Form, trial: Callable[[Form], Trial]) -> None:
        """Store the results of a trial, or the error that it raised."""
        try:
            self.store(trial(form))
        except Exception as error:  # anything that MLX or its compiler raises: this form is not used
            self.store(Trial(form, failure=" ".join(str(error).split())[:500] or type(error).__name__))

    def compile(self, form: Form) -> Trial:
        """Compile all kernels of a form, and run them on a single window."""
        for rates in rates_to_try(self.verdict.question):
            contender = Contender(self.verdict.question, form, rates)
            contender.gradient(1)
            seconds = contender.seconds(1)
            if form.narrow and seconds / 2 > LONGEST_LAUNCH:
                return Trial(form, failure=f"a launch of one window takes {seconds / 2:.2g} s")
        return self.result(form)

    def plain(self, rates: Rates) -> tuple[dict[str, mx.array], float]:
        """Return the gradients of plain operations on the CPU, and their deviation on this device; computed once."""
        if rates not in self._plain:
            question = self.verdict.question
            expected = Contender(question, None, rates).gradient(3, device=mx.Device(mx.cpu, 0))
            here = Contender(question, None, rates).gradient(3)
            self._plain[rates] = expected, deviation(here, expected)
        return self._plain[rates]

    def verify(self, form: Form) -> Trial:
        """Compare gradients of three windows with plain operations on the CPU, and check that repetitions are equal.

        Outputs are filled with NaN before, to detect elements never written. On devices that round the factors of
        products (TF32), the deviation of plain operations sets the tolerance.
        """
        question, error, allowed = self.verdict.question, 0.0, LEAST_TOLERANCE
        for rates in rates_to_try(question):
            expected, here = self.plain(rates)
            allowed = max(allowed, SLACK * here)
            for saved in (False, True):
                with source.filled(math.nan):
                    found = Contender(question, form, rates).gradient(3, saved)
                error = max(error, deviation(found, expected), key=lambda one: (math.isnan(one), one))
        if not error <= allowed:
            return Trial(form, error, f"deviates from plain operations by {error:.2g}")
        contender = Contender(question, form)
        first = contender.gradient(3)
        for _ in range(REPEATS - 1):
            again = contender.gradient(3)
            if not all(mx.array_equal(again[name], array).item() for name, array in first.items()):
                return Trial(form, error, "gives other numbers when it is repeated")
        return Trial(form, error)

    def time_all(self) -> None:
        """Time the forms alternately with plain operations, at increasing numbers of windows, and choose a form."""
        forms = [trial.form for trial in self.verdict.correct]
        contenders = [Contender(self.verdict.question, form) for form in (None, *forms)]
        times: dict[int, list[list[float]]] = {}  # by windows and contender
        for S in WINDOWS:
            # each time includes two launches; one launch with twice as many windows may take as long as both
            if times and any(
                form.narrow and min(each) > LONGEST_LAUNCH
                for form, each in zip(forms, times[max(times)][1:], strict=True)
            ):
                break
            self.begin(f"time {S} windows")
            began = time.perf_counter()
            for contender in contenders:
                contender.seconds(S)
            rounds = [[each.seconds(S) for each in contenders] for _ in range(ROUNDS)]
            times[S] = [list(each) for each in zip(*rounds, strict=True)]
            now = time.perf_counter()
            if now + 2 * (now - began) > self.compiled + ENOUGH * self.limit:
                break
        plain, *found = [{S: statistics.median(each[i]) for S, each in times.items()} for i in range(1 + len(forms))]
        for form, by_windows in zip(forms, found, strict=True):
            self.store(replace(self.result(form), seconds=by_windows))
        most = max(times)
        spread = max(map(_spread, times[most]))
        if spread > STEADY:
            self.verdict = replace(self.verdict, untimed=f"timings varied by {spread:.0%}")
            return
        fastest = min(self.verdict.correct, key=lambda trial: trial.seconds[most])
        seconds, form = fastest.seconds[most], fastest.form
        if form.narrow and source.backend() == "metal":
            form = form._replace(windows=max(1, int(LONGEST_LAUNCH / (seconds / (2 * most)))))
        self.verdict = replace(self.verdict, plain=plain, form=form if seconds <= FASTER * plain[most] else None)


def _spread(seconds: Sequence[float]) -> float:
    """Return the interquartile range divided by the median."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def saves_power() -> bool:
    """Return whether a Mac is in low power mode, in which timings are not representative."""
    try:
        return "lowpowermode 1" in " ".join(subprocess.run(
            ["pmset", "-g"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.split())  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False


def main(path: str, limit: float) -> None:
    """Check kernels for the question in the verdict's file, and write the results there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it, and kills this one
    signal.setitimer(signal.ITIMER_REAL, 3 * limit)  # ends this process even if the parent is gone
    file = VerdictFile(Path(path))
    verdict = file.read()
    assert verdict is not None
    Check(file, verdict, limit).run()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
