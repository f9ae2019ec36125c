"""Functions of arrays, compiled: traced once a shape, their elementwise operations fused.

Elsewhere than on Metal functions run as they are. On the CPU compiling gains nothing, and takes a compiler at run
time. On CUDA each fused operation takes seconds to compile, a training step a minute, where the kernels of
`mlx_rtx.kernels` fuse more.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from mlx_rtx.support.stopping import Stopped

import mlx.core as mx
import mlx.nn as nn


def should_compile() -> bool:
    """Whether functions are compiled on the device in use."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def compiled(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(model, *arguments)`` as a function of the arguments, compiled where `should_compile` says so.

    Args:
        model: its configuration alone may be used; an array of its own would be frozen into what is compiled.
        function: takes and returns trees of arrays, and constants that it may branch on: for each of their values
            it is traced again.
    """
    if not should_compile():
        return functools.partial(function, model)
    made = vars(model).setdefault("_compiled", {})
    if function not in made:
        model_reference = weakref.ref(model)  # it holds this function: in a cycle neither would be freed at once

        def pure(*arguments: Any) -> Any:
            return function(model_reference(), *arguments)

        made[function] = mx.compile(pure)
    return made[function]


class Execution:
    """How a computation in several functions is run: each compiled if `should_compile`, queued, and waited for.

    Another one may count what would be run: see `mlx_rtx.forecast.graph`.
    """

    def __call__(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``."""
        return compiled(model, function)(*arguments)

    def queue(self, *trees: Any) -> None:
        """Let the device begin."""
        mx.async_eval(*trees)

    def poll(self) -> None:
        """A place at which what is computed may be broken off by an exception, for nothing of it has been kept."""

    def wait(self, *trees: Any) -> None:
        """Wait until trees are computed: memory is taken when work is queued, so this bounds it."""
        mx.eval(*trees)


class BreakableExecution(Execution):
    """Breaks off what is computed, by `Stopped`, once ``unwanted`` says so."""

    def __init__(self, unwanted: Callable[[], bool]):
        self.unwanted = unwanted

    def poll(self) -> None:
        """Look whether it is still wanted."""
        if self.unwanted():
            raise Stopped
