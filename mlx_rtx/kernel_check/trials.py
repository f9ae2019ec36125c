"""Computes and times a segment's gradient, with one form of the kernels or with plain operations.

The computation is that of training: a forward scan, then a backward pass with the arrays that it saved.

Letters: B batch, S windows per segment, K block width, D width.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mlx_rtx import kernels
from mlx_rtx.kernel_check.verdict import Question
from mlx_rtx.kernels import FORMS, NARROW, Form, source
from mlx_rtx.kernels.scan import LONGEST_LAUNCH, seconds_a_window
from mlx_rtx.model.config import Architecture
from mlx_rtx.model.recurrence import Recurrence
from mlx_rtx.model.segment import Carry, Saved
from mlx_rtx.support.compiled import compiled
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

DROPOUT = 0.1
SLACK = 2  # tolerated deviation, as a multiple of that of plain operations on this device, which may use TF32
LEAST_TOLERANCE = 1e-4  # smaller deviations are always tolerated


Rates = tuple[float, float]


def rates_to_try(question: Question) -> list[Rates]:
    """Return the dropout rates to check: none, as in validation, then those of training (if any)."""
    own = DROPOUT * question.options["dropout"], question.options["attention_dropout"]
    return [(0.0, 0.0), own] if any(own) else [own]


class Inputs(NamedTuple):
    """Inputs of a scan, and cotangents of its outputs; the loss is the inner product of outputs and cotangents."""

    parameters: dict[str, Any]
    carry: Carry
    x: mx.array  # (B, S·K, D)
    keys: mx.array | None
    dy: mx.array  # (B, S·K, D)
    dcarry: Carry


class Contender:
    """One way to compute a segment's gradient.

    Args:
        question: sizes and options.
        form: form of the kernels; None for plain operations.
        rates: dropout rates of outputs and of attention weights; those of training by default.
    """

    def __init__(self, question: Question, form: Form | None, rates: Rates | None = None):
        self.form, self.batch = form, question.batch
        rate, attention_rate = rates or rates_to_try(question)[-1]
        options = question.options | {"dropout": rate, "attention_dropout": attention_rate, "alpha_kind": "channel"}
        self.architecture, self.drops = Architecture(**options), rate + attention_rate > 0
        self.recurrence = Recurrence(self.architecture, "plain" if form is None else "auto")

    def gradient(self, S: int, saved: bool = True, device: mx.Device | None = None) -> dict[str, mx.array]:
        """Compute the loss over S windows and all gradients.

        Args:
            S: number of windows.
            saved: whether the backward pass uses the arrays that a forward pass saved.
            device: device to run on without compiling; by default the current one, compiled if training is.
        """

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            return partial(function, self.recurrence) if device else compiled(self.recurrence, function)

        kernels.choose(self.form)
        inputs, kept = self._inputs(S), ()
        mx.eval(inputs)  # drawn on the default device, hence equal for every `device`
        with mx.stream(device or mx.default_device()):
            if saved:
                kept = made(_forward)(inputs)
            loss, gradients = made(_backward)(inputs, kept)
            arrays = {"loss": loss, **flat(gradients)}
            mx.eval(arrays)
        return arrays

    def seconds(self, S: int) -> float:
        """Return the seconds that a gradient over S windows takes."""
        self._inputs(S)
        clock = time.perf_counter()
        self.gradient(S)
        return time.perf_counter() - clock

    def _inputs(self, S: int) -> Inputs:
        """Draw random inputs, the same for all contenders."""
        (K, D), B = (self.architecture.block, self.architecture.dim), self.batch
        drawn = iter(mx.random.split(mx.random.key(S), 64))

        def normal(*shape: int, scale: float = 1.0) -> mx.array:
            return mx.random.normal(shape, scale=scale, key=next(drawn))

        parameters = tree_map(
            lambda w: normal(*w.shape, scale=len(w) ** -0.5) if w.ndim == 2 else w, self.recurrence.parameters()
        )
        parameters["alpha"] = mx.random.uniform(0.2, 0.6, (D,), key=next(drawn))
        inputs = Inputs(
            parameters,
            Carry(normal(B, K, D), normal(B, K, D)),
            normal(B, S * K, D),
            mx.random.split(next(drawn), S + 1) if self.drops else None,
            normal(B, S * K, D),
            Carry(normal(B, K, D), normal(B, K, D)),
        )
        mx.eval(inputs)
        return inputs


def _forward(recurrence: Recurrence, inputs: Inputs) -> Saved:
    """Run the forward scan and return what it saves."""
    weights = recurrence.fold_weights(inputs.parameters)
    return recurrence(inputs.x, weights, inputs.carry, 0, False, inputs.keys).saved


def _backward(recurrence: Recurrence, inputs: Inputs, saved: Saved) -> tuple[mx.array, tuple]:
    """Return the loss, and its gradient with respect to parameters, carry and x."""

    def loss(parameters: dict[str, Any], carry: Carry, x: mx.array) -> mx.array:
        weights = recurrence.fold_weights(parameters)
        out = recurrence(x, weights, carry, None, False, inputs.keys, saved, differentiated=True)
        assert out.carry is not None
        pairs = (out.y, inputs.dy), (out.carry.m, inputs.dcarry.m), (out.carry.h, inputs.dcarry.h)
        return sum(((array * cotangent).sum() for array, cotangent in pairs), mx.array(0.0))

    return mx.value_and_grad(loss, argnums=(0, 1, 2))(inputs.parameters, inputs.carry, inputs.x)


def candidates(question: Question) -> list[Form]:
    """Return the forms to check, likely fastest first, without narrow ones if one window is too long for a launch."""
    K, D, hidden = question.options["block"], question.options["dim"], question.options["history"] == "hidden"
    short = seconds_a_window(question.batch, K if hidden else 2 * K, K, D) <= LONGEST_LAUNCH
    forms = [form for form in FORMS if not form.narrow or (short and (form.tiles != "matrices" or takes_matrices(D)))]
    return sorted(forms, key=lambda form: form.narrow != (D <= NARROW))


def takes_matrices(D: int) -> bool:
    """Return whether a narrow kernel of width D can use matrices on this backend."""
    return source.backend() == "metal" and D % 8 == 0


def deviation(found: dict[str, mx.array], expected: dict[str, mx.array]) -> float:
    """Return the largest absolute difference of arrays of the same name, relative to the largest expected value.

    The result is NaN if any difference is.
    """
    worst = []
    for name, array in expected.items():
        one, other = np.array(found[name], np.float64), np.array(array, np.float64)
        worst.append(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
    return float(np.max(worst))
