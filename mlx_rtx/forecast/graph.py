"""What a function makes the device do: kernels launched, multiply-adds in matrix products, bytes moved.

The graph of the function is traced and walked; nothing is computed. Views move no bytes and launch nothing;
whatever fusion a backend does on top is not seen.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mlx_rtx import kernels
from mlx_rtx.model import recurrence
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support import compiled
from mlx_rtx.support.trees import arrays

import mlx.core as mx

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice", "Split",
    "Squeeze", "StopGradient", "Transpose", "Unflatten",
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
            return [*arrays(function(*traced)), *evaluated]

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


@contextlib.contextmanager
def _traceable() -> Iterator[list[mx.array]]:
    """Make a function's whole graph visible.

    Evaluation only notes its arrays; nothing is compiled; functions with a gradient of their own, and the
    cross-entropy that GPUs have a kernel for, give way to ones whose graph can be written down; and each run of a
    model gets inputs of its own. Else the tracer, which merges what is computed twice from the same, would lose the
    second pass over a segment.
    """
    evaluated: list[mx.array] = []

    def note(*trees: Any) -> None:
        evaluated.extend(arrays(trees))

    def clip(alpha: mx.array) -> mx.array:
        return mx.clip(alpha, 0, 1)

    def window(alpha: mx.array, x: mx.array, *carry: mx.array) -> mx.array:
        m, h = recurrence.halves(carry)
        return mx.concatenate([h, x], axis=1) + mx.tile(alpha * m, (1, 2, 1))

    def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
        scores = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
        return mx.logsumexp(logits, axis=-1) - scores

    def marked(run: Callable) -> Callable:
        @functools.wraps(run)
        def run_marked(*given: Any, **named: Any) -> Any:
            call = inspect.signature(run).bind(*given, **named)
            for name in ("tokens", "keys"):
                if call.arguments.get(name) is not None:
                    call.arguments[name] = mx.depends([call.arguments[name]], [mx.array([0, 0])])[0]
            return run(*call.args, **call.kwargs)

        return run_marked

    places: list[tuple[Any, str, Callable]] = [(recurrence, "clamp", clip), (recurrence, "window", window)]
    places += [(compiled, "pays", lambda: False), (kernels, "available", lambda: False)]
    places += [(mx, name, note) for name in ("eval", "async_eval")]
    places += [(mx.fast, "cross_entropy", cross_entropy)]
    places += [(kind, "run", marked(kind.run)) for kind in MODELS.values()]
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, stand_in in places:
            setattr(module, name, stand_in)
        yield evaluated
    finally:
        for (module, name, _), own in zip(places, before, strict=True):
            setattr(module, name, own)
