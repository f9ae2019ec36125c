"""What functions make the device do: kernels launched, multiply-adds in matrix products, bytes moved.

The graph of a function is traced and walked; nothing is computed. Views move no bytes and launch nothing;
whatever fusion a backend does on top is not seen. A model whose graph is to be walked is made with
``implementation="exportable"``.
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
        """With so many times another's."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Trace ``function`` and sum up what it would launch.

    Args:
        function: evaluates nothing; the arrays that it returns are the ends of the graph.
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
    held: dict[str, int] = {}  # bytes that lie behind an array; behind a view, those of what it shows
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
    """Runs nothing and sums up what would be run, function by function.

    Each is walked on its own: the tracer merges what is computed twice from the same arrays, so one graph of all
    would lose the second pass over a segment. What was walked before is not walked again.

    Args:
        walked: what was, of this model's configuration: it is added to.
    """

    def __init__(self, walked: dict[Any, tuple[Work, Any]] | None = None) -> None:
        self.work = Work(0, 0, 0)
        self._walked = {} if walked is None else walked

    def __call__(self, model: nn.Module, function: Callable[..., Any], *arguments: Any) -> Any:
        """Arrays like those of the result, of which nothing is computed."""
        key = function, repr(tree_map(_shape, arguments))
        if key not in self._walked:
            work = count_work(lambda *given: function(model, *given), *arguments)
            self._walked[key] = work, tree_map(_blank, function(model, *arguments))
        work, result = self._walked[key]
        self.work = self.work.plus(work)
        return result

    def queue(self, *trees: Any) -> None:
        """Nothing is queued."""

    def wait(self, *trees: Any) -> None:
        """Nothing is waited for."""


def _shape(leaf: Any) -> Any:
    """All of an array that its graph depends on."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf


def _blank(leaf: Any) -> Any:
    """An array like another, without what led to it."""
    return mx.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, mx.array) else leaf
