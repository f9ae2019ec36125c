"""Parallel processes: their exit codes, and their end after an interruption."""

import os
import signal
import sys
import threading
import time

from mlx_rtx.scaling.jobs import run_all
from mlx_rtx.support.stopping import Interrupted, interruptible

import pytest


def test_exit_codes_are_in_order():
    assert run_all([[sys.executable, "-c", f"raise SystemExit({code})"] for code in (3, 0, 1)], 2) == [3, 0, 1]


def test_an_interruption_ends_all_processes(tmp_path):
    """Running and waiting ones."""
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    files = [tmp_path / str(i) for i in range(3)]

    def interrupt():
        while not all(file.exists() for file in files[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted), interruptible():
        run_all([[sys.executable, "-c", code, file] for file in files], 2)
    assert not files[2].exists()
