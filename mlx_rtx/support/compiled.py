"""Compiled functions of arrays, on Metal: traced once per shape, with elementwise operations fused.

On other backends functions run uncompiled. On the CPU compiling brings no speed-up and requires a compiler at run time.
On CUDA each fused operation takes seconds to compile, a training step a minute, and the kernels of `mlx_rtx.kernels`
fuse more.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from mlx_rtx.support.stopping import Stopped

import mlx.core as mx
import mlx.nn as nn


def should_compile() -> bool:
    """Return whether functions are compiled on the default device."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def compiled(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function(model, *arguments)`` as a function of the arguments, compiled if `should_compile`.

    Args:
        model: the function may use only its configuration; arrays of the model would become constants of the compiled
            function.
        function: takes and returns trees of arrays. It may also take constants and branch on them, and is traced
            again for each of their values.
    """
    if not should_compile():
        return functools.partial(function, model)
    made = vars(model).setdefault("_compiled", {})
    if function not in made:
        model_reference = weakref.ref(model)  # the model owns this function: avoid a reference cycle

        def pure(*arguments: Any) -> Any:
            return function(model_reference(), *arguments)

        made[function] = mx.compile(pure)
    return made[function]


class Execution:
    """Runs the functions of a computation: compiles them if `should_compile`, queues work, and waits for it.

    A subclass may count operations instead of running them: see `mlx_rtx.forecast.graph`.
    """

    def __call__(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(model, *arguments)``."""
        return compiled(model, function)(*arguments)

    def queue(self, *trees: Any) -> None:
        """Start computing trees on the device, without waiting."""
        mx.async_eval(*trees)

    def poll(self) -> None:
        """Mark a point at which a subclass may abort the computation by an exception; no result has been kept yet."""

    def wait(self, *trees: Any) -> None:
        """Wait until trees are computed; this bounds memory, which is allocated when work is queued."""
        mx.eval(*trees)


class BreakableExecution(Execution):
    """Execution that raises `Stopped` at the next `poll` once ``unwanted`` returns true."""

    def __init__(self, unwanted: Callable[[], bool]):
        self.unwanted = unwanted

    def poll(self) -> None:
        """Raise `Stopped` if the result is no longer wanted."""
        if self.unwanted():
            raise Stopped
