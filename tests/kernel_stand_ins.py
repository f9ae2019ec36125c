"""A check of kernels on any machine: `mlx_rtx.kernel_check.worker` with something else in the place of kernels.

``python tests/kernel_stand_ins.py BEHAVIOURS VERDICT_FILE LIMIT``, a behaviour for each form, by commas. Plain
operations are slowed down, so that what does the same can be worth it.
"""

import os
import signal
import sys
import time

from mlx_rtx import kernels
from mlx_rtx.kernel_check import worker
from mlx_rtx.kernels import FORMS
from mlx_rtx.model.recurrence import Recurrence

import mlx.core as mx

PAUSE = 0.01
calls = []


def behave(behaviour, states):
    """What a form does with the outputs of a scan that plain operations made."""
    calls.append(behaviour)
    match behaviour:
        case "wrong":
            return [1.01 * state for state in states]
        case "unwritten":
            return [mx.where(mx.arange(state.shape[-1]) == 0, mx.nan, state) for state in states]
        case "unsteady":
            return [state + 1e-6 * len(calls) for state in states]
        case "slow":
            time.sleep(1.5 * PAUSE)
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
        if self.implementation == "plain":
            time.sleep(PAUSE)
            return states, carry, saved
        return behave(of_form[kernels.form(0)], states), carry, saved

    mx.set_default_device(mx.cpu)  # nothing is compiled there, and no real kernel runs
    Recurrence._scan = stand_in
    worker.ROUNDS, worker.WINDOWS, worker.STEADY = 3, (1, 2), float("inf")
    worker.main(path, float(limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
