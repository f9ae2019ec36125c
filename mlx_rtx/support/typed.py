"""Values from files, held to the types that they should have: a file may say anything."""

import types
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mlx_rtx.support.errors import UserError, require

T = TypeVar("T")
SHOWN = 60  # characters of a value in a message


def fits(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of a type, of which it may have several; integers are those of 64 bits.

    Example:
        >>> fits(3, float), fits(True, int), fits([1, "2"], list[int]), fits(None, int | None)
        (True, False, False, True)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if kind is int:
        return type(value) is int and -(2**63) <= value < 2**63
    if kind is float:
        return type(value) is float or fits(value, int)
    return isinstance(value, kind)


def make(kind: type[T], values: Any) -> T:
    """A dataclass of values out of JSON; what is missing takes its default.

    Raises:
        UserError: a value is missing, unknown, of another type, or refused by the dataclass itself.
    """
    require(isinstance(values, dict), f"{kind.__name__}: is no table of names and values")
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(cast(Any, kind))}
    for name, value in values.items():
        require(name in known, f"{shown(name)}: is no setting of {kind.__name__}")
        require(fits(value, known[name]), f"{name}={shown(value)}: is of no type that {kind.__name__} has for it")
    try:
        return kind(**values)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # the first where some are missing
        raise UserError(f"{kind.__name__}: {error}") from None


def shown(value: Any) -> str:
    """A value of unknown size in one short line."""
    if isinstance(value, str):
        text = ascii(value)
    else:
        text = repr(value) if fits(value, bool | float | None) else type(value).__name__
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
