"""Stress tests of commands: trainings that are killed at any moment, and random command lines.

Each part prints its counts. It runs in a separate process, because it forks, which is unsafe after MLX was used.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
TESTS = Path(__file__).parents[1]


def run(program, count, capsys, seed=0):
    """Run a program of this folder, show its output, and return the last line."""
    command = [sys.executable, str(TESTS / program), str(count), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    with capsys.disabled():
        print(f"\n{done.stdout.rstrip()}")
    assert done.returncode == 0
    return done.stdout.splitlines()[-1]


def test_killed_trainings_resume_bit_exactly(capsys):
    assert re.fullmatch(r"3\d\d kills .*: 0 faults", run("kills.py", 300, capsys))


@pytest.mark.parametrize("seed", range(4))
def test_no_command_line_ends_in_a_traceback(seed, capsys):
    assert run("command_runs.py", 2500, capsys, seed).endswith(": 0 faults")
