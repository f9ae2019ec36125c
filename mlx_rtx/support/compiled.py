"""Functions of a model, compiled: traced once a shape, their elementwise operations fused.

Elsewhere than on Metal functions run as they are. On the CPU compiling gains nothing, and takes a compiler at run
time. On CUDA each fused operation takes seconds to compile, a training step a minute, where the kernels of
`mlx_rtx.kernels` fuse more.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def pays() -> bool:
    """Whether functions are compiled on the device in use."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def compiled(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(model, *arguments)`` as a function of the arguments, compiled where that pays.

    Args:
        function: a function of a module; what it takes and returns are trees of arrays, and constants that it may
            branch on: for each of their values it is traced anew.
    """
    if not pays():
        return functools.partial(function, model)
    made = vars(model).setdefault("_compiled", {})
    if function not in made:
        where = weakref.ref(model)  # which holds this function: in a cycle neither would be freed at once

        def pure(weights: dict, *arguments: Any) -> Any:
            model = where()
            assert model is not None
            before = model.parameters()
            model.update(weights)
            try:
                return function(model, *arguments)
            finally:
                model.update(before)

        made[function] = mx.compile(pure)
    return functools.partial(made[function], model.parameters())
