"""Work of a function on the device: kernel launches, multiply-adds in matrix products, bytes moved.

The function's graph is traced and traversed; nothing is computed. Views move no bytes and launch nothing; fusion by the
backend is not taken into account. A model whose graph is traced must be created with ``implementation="exportable"``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.trees import arrays

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split",
    "Squeeze", "StopGradient", "Transpose", "Unflatten",
}  # fmt: skip


class Work(NamedTuple):
    """Sums over a graph."""

    launches: int
    multiply_adds: int
    bytes: int

    def plus(self, other: "Work", times: int = 1) -> "Work":
        """Return the sum of this work and ``times`` times another's."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Trace ``function`` and return its work.

    Args:
        function: function that evaluates no arrays; those it returns are the outputs of the graph.
        arguments: trees of arrays and constants.
    """
    given = arrays(arguments)

    def ends(*traced: mx.array) -> list[mx.array]:
        following = iter(traced)
        trees = tree_map(lambda leaf: next(following) if isinstance(leaf, mx.array) else leaf, arguments)
        return arrays(function(*trees))

    graph: list[dict] = []
    mx.export_function(graph.append, ends, *given)
    launches = multiply_adds = moved = 0
    held: dict[str, int] = {}  # bytes in memory behind a view
    for node in graph:
        if node["type"] != "primitive":
            continue
        inputs, outputs = (
            [(name, shape, math.prod(shape) * dtype.size) for name, shape, dtype in node[side]]
            for side in ("inputs", "outputs")
        )
        if node["name"] in VIEWS:
            behind = min(held.get(name, size) for name, _, size in inputs[:1])
            held |= {name: min(behind, size) for name, _, size in outputs}
            continue
        launches += 1
        moved += sum(held.get(name, size) for name, _, size in inputs) + sum(size for _, _, size in outputs)
        if node["name"] in ("Matmul", "AddMM"):
            multiply_adds += math.prod(inputs[0][1]) * inputs[1][1][-1]  # (…, n, m) @ (…, m, p)
    return Work(launches, multiply_adds, moved)


class CountedExecution(Execution):
    """Sums up the work of all functions instead of running them.

    Each function is traced separately: the tracer merges operations that are computed twice from the same arrays, so
    that a single graph would lack the second pass over a segment. Results are cached.

    Args:
        walked: cache of results for this model's configuration, which is extended.
    """

    def __init__(self, walked: dict[Any, tuple[Work, Any]] | None = None) -> None:
        self.work = Work(0, 0, 0)
        self._walked = {} if walked is None else walked

    def __call__(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Add the work of a function; return blank arrays of the shapes and dtypes of its result."""
        key = function, repr(tree_map(_shape, arguments))
        if key not in self._walked:
            work = count_work(lambda *given: function(model, *given), *arguments)
            self._walked[key] = work, tree_map(_blank, function(model, *arguments))
        work, result = self._walked[key]
        self.work = self.work.plus(work)
        return result

    def queue(self, *trees: Any) -> None:
        """Do nothing."""

    def wait(self, *trees: Any) -> None:
        """Do nothing."""


def _shape(leaf: Any) -> Any:
    """Return the properties of an array on which a graph depends; return other leaves unchanged."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf


def _blank(leaf: Any) -> Any:
    """Return zeros of the same shape and dtype for an array; return other leaves unchanged."""
    return mx.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf
