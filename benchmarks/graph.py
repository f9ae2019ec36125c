"""What a function makes the device do: kernels launched, multiply-adds in matrix products, bytes moved.

The graph of the function is traced and walked; nothing is computed. Views move no bytes and launch nothing;
whatever fusion a backend does on top is not seen.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from mlx_rtx import gradient, recurrence

import mlx.core as mx
from mlx.utils import tree_flatten

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze",
    "StopGradient", "Transpose", "Unflatten",
}  # fmt: skip


class Work(NamedTuple):
    """Sums over a graph."""

    launches: int
    multiply_adds: int
    bytes: int


def walk(function: Callable[..., Any], *arguments: mx.array) -> Work:
    """Trace ``function``, which may evaluate arrays on its way, and sum up what it would launch.

    Args:
        function: what it returns, and all that it evaluates, are the ends of the graph. Whatever it
            changes on its way (a model that it trains) is of no more use.
        arguments: its arrays.
    """
    graph: list[dict] = []
    with _traceable() as evaluated:

        def ends(*traced):
            evaluated.clear()
            return [*_arrays(function(*traced)), *evaluated]

        mx.export_function(graph.append, ends, *arguments)
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


def _arrays(tree: Any) -> list[mx.array]:
    return [leaf for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array)]


@contextlib.contextmanager
def _traceable() -> Iterator[list[mx.array]]:
    """Let evaluation only note its arrays, and put a clamp whose graph can be written down in the place of α's."""
    evaluated: list[mx.array] = []

    def note(*trees: Any) -> None:
        evaluated.extend(_arrays(trees))

    def clip(alpha: mx.array) -> mx.array:
        return mx.clip(alpha, 0, 1)

    with contextlib.ExitStack() as stack:
        for module in (recurrence, gradient):
            stack.enter_context(mock.patch.object(module, "clamp", clip))
        for name in ("eval", "async_eval"):
            stack.enter_context(mock.patch.object(mx, name, note))
        yield evaluated
