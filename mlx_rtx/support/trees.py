"""Parameter trees as flat dictionaries, typed."""

import math
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

ALIGNMENT = 16  # bytes


def flat(tree: Any) -> dict[str, mx.array]:
    """The arrays of a tree by dotted name, e.g. ``layers.0.alpha``, in a fixed order."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))


def each(array: mx.array) -> list[mx.array]:
    """The parts of an array along its first axis, as views; indices would copy them."""
    return [part.squeeze(0) for part in mx.split(array, len(array))]


def arrays(tree: Any) -> list[mx.array]:
    """The arrays among the leaves of a tree, which may hold others."""
    return [leaf for leaf in flat(tree).values() if isinstance(leaf, mx.array)]


def count(tree: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(array.size for array in flat(tree).values())


def not_finite(tree: Any) -> list[str]:
    """Names of the arrays of a tree that hold NaN or infinity; waits for them."""
    finite = {name: mx.isfinite(leaf).all() for name, leaf in flat(tree).items() if isinstance(leaf, mx.array)}
    mx.eval(finite)
    return [name for name, every in finite.items() if not every]


def part(vector: mx.array, start: int, shape: tuple[int, ...]) -> mx.array:
    """An array that lies in a vector from ``start`` on: a view, but of a matrix off 16 bytes a copy.

    On CUDA products may refuse such a factor: MLX tells cuBLAS that all are aligned.
    """
    found = vector[start : start + math.prod(shape)].reshape(shape)
    return 1 * found if len(shape) > 1 and start * vector.itemsize % ALIGNMENT else found
