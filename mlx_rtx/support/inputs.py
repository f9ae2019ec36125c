"""Checks of arrays that callers pass in. MLX does not check indices: one out of range reads or writes other memory.

Public functions check their arguments; the inner loops of training and generation call unchecked functions instead.
Checking values waits for their computation, so it is done only where waiting costs nothing.
"""

from typing import Any

from mlx_rtx.support.errors import UserError, require

import mlx.core as mx
import numpy as np

IGNORED = -1  # target class of positions that the loss ignores
NUMBERS = {mx.integer: "integers", mx.unsignedinteger: "unsigned integers", mx.floating: "floating-point numbers"}


def check_indices(name: str, given: Any, count: int, of: str, least: int = 0) -> None:
    """Check that an argument is a batch of indices: a non-empty array (B, n) of integers in least … count - 1.

    Values are not checked while a function is traced, e.g. for compilation, since they are not known then.

    Args:
        name: name of the argument.
        given: the argument.
        count: number of choices.
        of: description of the choices, e.g. "the model's classes".
        least: smallest valid index.

    Raises:
        UserError: if the argument is invalid.
    """
    check_array(name, given, "(batch, length)", mx.integer)
    require(given.ndim == 2, f"{name}: has shape {given.shape}; must be (batch, length), for one sequence (1, length)")
    require(given.size > 0, f"{name}: has shape {given.shape}: is empty; give at least one sequence of one token")
    if (values := values_of(given)) is None:
        return
    if values.min() < least or values.max() >= count:
        row, column = np.argwhere((values < least) | (values >= count))[0].tolist()
        raise UserError(f"{name}: {values[row, column]} at ({row}, {column}); must lie in {least} … {count - 1}, {of}")


def values_of(array: mx.array) -> np.ndarray | None:
    """Wait for an array and return its values, or None if it is being traced."""
    try:
        mx.eval(array)
    except ValueError:  # raised by MLX for traced arrays
        return None
    return np.asarray(array)


def check_array(name: str, given: Any, shape: str, kind: mx.DtypeCategory) -> None:
    """Raise `UserError` unless ``given`` is an MLX array of dtype ``kind``; the message names the expected shape."""
    if isinstance(given, mx.array) and mx.issubdtype(given.dtype, kind):
        return
    is_array = isinstance(given, mx.array)
    found = f"has dtype {str(given.dtype).rsplit('.')[-1]}" if is_array else f"is a {type(given).__name__}"
    raise UserError(f"{name}: {found}; must be an mx.array of {NUMBERS[kind]}, {shape}")


def check_key(key: Any) -> None:
    """Raise `UserError` unless ``key`` is a random key."""
    right = isinstance(key, mx.array) and key.dtype == mx.uint32 and key.shape == (2,)
    require(right, "key: not a random key; pass one from mx.random.key(seed) or mx.random.split")
