"""Parameter trees as flat, typed dictionaries, and operations on their arrays."""

import math
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten

ALIGNMENT = 16  # bytes


def flat(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of a tree by dotted name, e.g. ``layers.0.alpha``, in a fixed order."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))


def each(array: mx.array) -> list[mx.array]:
    """Return the slices of an array along its first axis, as views; indexing would copy them."""
    return [part.squeeze(0) for part in mx.split(array, len(array))]


def arrays(tree: Any) -> list[mx.array]:
    """Return those leaves of a tree that are arrays."""
    return [leaf for leaf in flat(tree).values() if isinstance(leaf, mx.array)]


def count(tree: Any) -> int:
    """Return the total number of elements in all arrays of a tree."""
    return sum(array.size for array in flat(tree).values())


def not_finite(tree: Any) -> list[str]:
    """Return the names of the arrays that contain NaN or infinity, after waiting for them."""
    finite = {name: mx.isfinite(leaf).all() for name, leaf in flat(tree).items() if isinstance(leaf, mx.array)}
    mx.eval(finite)
    return [name for name, every in finite.items() if not every]


def part(vector: mx.array, start: int, shape: tuple[int, ...]) -> mx.array:
    """Return the array of this shape that a vector contains from index ``start`` on.

    It is a view, except for a matrix that is not aligned to 16 bytes, which is copied: MLX tells cuBLAS that all
    matrices are aligned, so a product on CUDA might fail.
    """
    found = vector[start : start + math.prod(shape)].reshape(shape)
    return 1 * found if len(shape) > 1 and start * vector.itemsize % ALIGNMENT else found
