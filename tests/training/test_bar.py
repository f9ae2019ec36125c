"""Progress bar: it fits the terminal, shows the time left, and moves during scoring."""

import io
import os
import re
import shutil
import sys

from mlx_rtx.training.bar import fit, in_words
from mlx_rtx.training.log import RunLog

import mlx.core as mx
import pytest

from tiny import TINY, make_trainer


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(out):
    """Return all states of the bar."""
    return [text.rstrip() for text in re.split(r"[\r\n]", out.getvalue()) if "%|" in text]


@pytest.mark.parametrize("width", [60, 200])
def test_a_curriculum_on_a_terminal(width, tmp_path, monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((width, 24)))
    make_trainer(tmp_path, TINY).fit()
    bars = drawn(out)
    assert max(map(len, bars)) < width
    reports = [bar for bar in bars if "left" in bar and "sequences" not in bar]
    assert "stage 1 of 3" in reports[0]
    assert "stage 3 of 3" in reports[-1]
    assert all(re.search(r"≤ \d+:\d\d:\d\d left, loss \d", bar) for bar in reports)
    assert any("validation: 16 of 32 sequences" in bar for bar in bars)
    assert any("final: 16 sequences" in bar for bar in bars)
    assert ("tokens_per_s" in reports[0]) == (width == 200)
    assert reports[-1].startswith("100%|")


def test_no_bar_without_a_terminal(tmp_path, capsys):
    log = RunLog(tmp_path / "metrics.jsonl", 10)
    parts = [type("Part", (), {"targets": mx.zeros((2, 1))})()] * 3
    assert list(log.scoring("validation", parts)) == parts
    log.report(left=5.0, stages=(1, 3), step=1, samples=2, loss=0.5)
    assert capsys.readouterr().out == "step=1 samples=2 loss=0.5\n"


def test_words_that_fit():
    assert fit(["one", "two", "three"], 8) == "one, two"
    assert fit(["much too long"], 4) == "much"
    assert fit([], 4) == ""
    assert in_words(3723.4) == "1:02:03"
    assert in_words(float("inf")).endswith("40")
