"""Stop requests: handled at once wherever a program is, without a traceback, and with a conventional exit code."""

import os
import signal
import subprocess
import sys
import threading
import time

from mlx_rtx.support.stopping import SAME, Interrupted, ended_by_requests, interruptible, stop_requests

import pytest

PROGRAM = """
import functools, sys, time
from mlx_rtx.support.command import run_command
from mlx_rtx.support.stopping import interruptible, stop_requests
import mlx.core as mx

def main(arguments):
    long = functools.reduce(lambda x, _: x @ x, range(10_000), mx.ones((512, 512)))  # a minute or so
    with {how}() as requests:
        print("ready", flush=True)
        {does}
    print("done", flush=True)

run_command(main)
"""
SLEEPS = "time.sleep(60)"
CALLS = "mx.eval(long)"
HEEDS = "while not requests: time.sleep(0.01)"


def start(how, does):
    command = [sys.executable, "-c", PROGRAM.format(how=how, does=does)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("does", "which"), [(SLEEPS, signal.SIGTERM), (CALLS, signal.SIGINT)], ids=str)
def test_a_program_is_interrupted_anywhere(does, which):
    with start("interruptible", does) as process:
        process.send_signal(which)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + which


def test_a_second_request_ends_a_program_at_once():
    """Also a program that would handle the first request later."""
    with start("stop_requests", CALLS) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(2 * SAME)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + signal.SIGINT


def test_two_signals_at_once_count_as_one():
    """A terminal, timeout and a parent process may each send it."""
    with start("stop_requests", HEEDS) as process:
        for which in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(which)
        assert process.communicate(timeout=30) == ("done\n", "")
    assert process.returncode == 0


def test_imports_are_interrupted_without_a_traceback():
    command = [sys.executable, "-X", "importtime", "-m", "mlx_rtx.train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "mlx_rtx.support.startup" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert out == ""
    assert process.returncode == -signal.SIGINT


def test_signal_handlers_are_restored():
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with interruptible(), stop_requests() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests == [signal.SIGTERM]
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with interruptible():
        with ended_by_requests():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before[1])
    with pytest.raises(Interrupted), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)


def test_other_threads_receive_no_requests():
    heard = []

    def run():
        with stop_requests() as requests:
            heard.append(requests)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [[]]
