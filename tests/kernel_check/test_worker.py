"""Timing in the worker: what is timed, for how long, and the decision, with simulated times."""

import itertools
import math

from mlx_rtx.kernel_check import worker
from mlx_rtx.kernel_check.verdict import Trial, Verdict, VerdictFile, ask
from mlx_rtx.kernels import FORMS, source
from mlx_rtx.model.config import Architecture

import mlx.core as mx
import pytest

NARROW, SMALL, MATRICES, WIDE = FORMS
QUESTION = ask(Architecture(dim=8, heads=2, block=4), 2)


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """Return the verdict if contenders take the given milliseconds per window, alternating if there are several."""

    def run(**milliseconds):
        class Contender:
            def __init__(self, question, form):
                given = milliseconds["plain" if form is None else "narrow" if form == NARROW else "wide"]
                self.times = itertools.cycle(given if isinstance(given, list) else [given])

            def seconds(self, S):
                return S * next(self.times) / 1000

        monkeypatch.setattr(worker, "Contender", Contender)
        file = VerdictFile(tmp_path / "verdict.json")
        check = worker.Check(file, file.write(Verdict(QUESTION, trials=(Trial(NARROW), Trial(WIDE)))))
        check.time_all()
        return check.verdict

    return run


def test_the_fastest_form_is_used(timed):
    for narrow, wide, used in ((4, 5, NARROW), (6, 5, WIDE), (9, 8.9, WIDE), (9.1, 9.2, None), (12, 13, None)):
        verdict = timed(plain=10, narrow=narrow, wide=wide)
        assert (verdict.form and verdict.form._replace(windows=None)) == used
        assert verdict.ratio == pytest.approx(min(narrow, wide) / 10)
        assert list(verdict.plain) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("here", "form", "right"),
    [(0.0, 1e-6, True), (0.0, 0.02, False), (0.02, 0.03, True), (0.02, 0.05, False), (math.nan, 0.02, False)],
)
def test_kernels_may_have_the_error_of_plain_operations(here, form, right, tmp_path, monkeypatch):
    """Products in TF32 are off by 0.02 in the end; correct kernels were once refused because of it."""

    class Contender:
        def __init__(self, question, kernels, rates=None):
            self.kernels = kernels

        def gradient(self, S, saved=True, device=None):
            off = form if self.kernels else 0.0 if device else here  # a device is given for the reference on the CPU
            return {"x": mx.array([1.0, 1.0 - off])}

    monkeypatch.setattr(worker, "Contender", Contender)
    file = VerdictFile(tmp_path / "verdict.json")
    trial = worker.Check(file, file.write(Verdict(QUESTION))).verify(NARROW)
    assert (trial.failure is None) == right
    assert trial.error == pytest.approx(form, rel=0.1)


def test_noisy_times_give_no_decision(timed):
    verdict = timed(plain=10, narrow=[2, 2.5, 3], wide=5)
    assert verdict.plain is None
    assert verdict.form is None
    assert verdict.untimed.startswith("timings varied by")


def test_launches_are_short(timed, monkeypatch):
    """Two launches are timed; a launch of twice the windows could take as long as both."""
    monkeypatch.setattr(source, "backend", lambda: "metal")
    verdict = timed(plain=100, narrow=20, wide=60)
    assert list(verdict.plain) == [1, 2, 4]
    assert verdict.form == NARROW._replace(windows=5)  # of 10 ms
    assert timed(plain=100, narrow=60, wide=70).form == NARROW._replace(windows=1)
    assert list(timed(plain=100, narrow=60, wide=70).plain) == [1]
    assert timed(plain=1, narrow=1, wide=0.5).form == WIDE


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null", "[" * 100_000, "\xff"], ids=lambda text: text[:4])
def test_an_invalid_verdict_file_is_ignored(content, tmp_path):
    (tmp_path / "verdict.json").write_text(content, encoding="latin-1")
    assert VerdictFile(tmp_path / "verdict.json").read() is None
