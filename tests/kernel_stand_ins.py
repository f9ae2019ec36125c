"""Run `mlx_rtx.kernel_check.worker` on any machine, with simulated kernels.

``python tests/kernel_stand_ins.py BEHAVIOURS VERDICT_FILE LIMIT``, with one behaviour per form, separated by commas.
Time is simulated too, so that it does not depend on the load of the machine.
"""

import os
import signal
import sys
from types import SimpleNamespace

from mlx_rtx import kernels
from mlx_rtx.kernel_check import trials, worker
from mlx_rtx.kernels import FORMS, source
from mlx_rtx.model.recurrence import Recurrence

import mlx.core as mx

SECONDS = {"plain": 0.01, "slow": 0.015}  # of a scan with plain operations, and with a slow form
OTHERWISE = 0.005
clock, calls = [0.0], []


def behave(behaviour, states):
    """Return the outputs of a simulated form, given the outputs of plain operations, or fail as ``behaviour`` says."""
    calls.append(behaviour)
    clock[0] += SECONDS.get(behaviour, OTHERWISE)
    match behaviour:
        case "wrong":
            return [1.01 * state for state in states]
        case "unwritten":
            return [mx.where(mx.arange(state.shape[-1]) == 0, mx.nan, state) for state in states]
        case "unsteady":
            return [state + 1e-6 * len(calls) for state in states]
        case "broken":
            raise RuntimeError("[metal::Device] Unable to build metal library from source")
        case "hanging":
            signal.pause()
        case "crashing":
            os.kill(os.getpid(), signal.SIGSEGV)
    return states


def main(behaviours, path, limit):
    scan, of_form = Recurrence._scan, dict(zip(FORMS, behaviours.split(","), strict=True))

    def stand_in(self, *arguments):
        states, carry, saved = scan(self, *arguments)
        behaviour = "plain" if self.implementation == "plain" else of_form[kernels.form(0)]
        return behave(behaviour, states), carry, saved

    mx.set_default_device(mx.cpu)  # nothing is compiled on a CPU, and no real kernel runs
    Recurrence._scan = stand_in
    source.backend = lambda: "metal"  # which has all forms
    trials.time = SimpleNamespace(perf_counter=lambda: clock[0])
    worker.ROUNDS, worker.WINDOWS, worker.STEADY = 3, (1, 2), float("inf")
    worker.main(path, float(limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
