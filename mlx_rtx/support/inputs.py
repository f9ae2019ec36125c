"""Arrays that callers hand over, checked where they enter: MLX reads and writes beyond an array at an index beyond it.

What is public checks; the loops that training and generation spend their time in call what lies behind it. Looking at
values waits for them, so it is done where a wait costs nothing.
"""

from typing import Any

from mlx_rtx.support.errors import UserError, require

import mlx.core as mx
import numpy as np

IGNORED = -1  # the class of a position at which nothing is asked, where targets may have such
NUMBERS = {mx.integer: "integers", mx.unsignedinteger: "unsigned integers", mx.floating: "floating-point numbers"}


def check_indices(name: str, given: Any, count: int, of: str, least: int = 0) -> None:
    """Refuse what is no batch of indices: an array (B, n) of integers in least … count - 1, neither B nor n 0.

    Args:
        name: what the argument is called.
        given: the argument.
        count: how many there are to choose from.
        of: what they are and how many, e.g. "the model's classes".
        least: the first of them.

    Raises:
        UserError: one line. The values of what is being traced, for example compiled, are not known, and not checked.
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
    """The values of an array, which this waits for; None of what is being traced, which has none."""
    try:
        mx.eval(array)
    except ValueError:  # as MLX has it
        return None
    return np.asarray(array)


def check_array(name: str, given: Any, shape: str, kind: mx.DtypeCategory) -> None:
    """Refuse what is no MLX array of some kind of numbers, of the shape that the message names."""
    if isinstance(given, mx.array) and mx.issubdtype(given.dtype, kind):
        return
    found = f"of {given.dtype}" if isinstance(given, mx.array) else f"a {type(given).__name__}"
    raise UserError(f"{name}: {found}; give an mx.array of {NUMBERS[kind]}, {shape}")


def check_key(key: Any) -> None:
    """Refuse what is no random key."""
    right = isinstance(key, mx.array) and key.dtype == mx.uint32 and key.shape == (2,)
    require(right, "key: is no random key; give one that mx.random.key(seed) or mx.random.split made")
