"""Rows of an embedding table, with a gradient that is bitwise reproducible on GPUs.

The gradient of ``table[indices]`` is a scatter-add. MLX's GPU backends add with atomic operations, in an order that
changes from run to run, and so does the rounding of the sum. For small tables a product with one-hot rows gives the
same gradient, always summed in the same order.
"""

from typing import cast

import mlx.core as mx

LARGEST = 1024  # rows of a table up to which the product is used: it takes rows · indices · D multiply-adds


def scatter_is_atomic() -> bool:
    """Return whether the default device sums a scatter-add in an order that may change from run to run."""
    return mx.default_device() == mx.gpu


def lookup(table: mx.array, indices: mx.array) -> mx.array:
    """Return the rows of ``table`` (N, D) at ``indices`` (…), an array (…, D).

    The gradient is bitwise reproducible on the CPU, and on GPUs for N ≤ `LARGEST`.
    """
    if scatter_is_atomic() and len(table) <= LARGEST:
        return cast(mx.array, _lookup(table, indices))
    return exportable_lookup(table, indices)


def exportable_lookup(table: mx.array, indices: mx.array) -> mx.array:
    """Do the same with MLX's own gradient, because MLX cannot export functions with a custom gradient."""
    return table[indices]


@mx.custom_function
def _lookup(table, indices):
    return table[indices]


@_lookup.vjp
def _lookup_vjp(primals, cotangent, _):
    table, indices = primals
    one_hot = mx.arange(len(table))[:, None] == indices.flatten().astype(mx.int32)  # (N, n)
    gradient = one_hot.astype(cotangent.dtype) @ cotangent.reshape(-1, table.shape[1])
    return gradient, mx.zeros_like(indices)
