"""Values from files and from callers, held to the types that they should have: both may say anything."""

import types
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mlx_rtx.support.errors import UserError, require

T = TypeVar("T")
SHOWN = 60  # characters of a value in a message
LARGEST = 3.4028234e38  # number that float32 holds
WORDS = {
    int: "a whole number", float: "a finite number", bool: "True or False", str: "text", types.NoneType: "None",
}  # fmt: skip


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as JSON has them, of which it may have several; integers are those of 64 bits.

    Example:
        >>> fits(3, float), fits(True, int), fits([1, "2"], list[int]), fits(None, int | None)
        (True, False, False, True)
    """
    if type(value) is kind and kind is not int:  # as most are
        return True
    if kind is int:
        return isinstance(value, int | Integral) and type(value) is not bool and -(2**63) <= int(value) < 2**63
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if kind is Any:
        return True
    if origin is tuple:  # of any number of one type
        return isinstance(value, tuple) and all(fits(one, arguments[0]) for one in value)
    if origin is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if kind is float:
        return fits(value, int) if isinstance(value, Integral) else isinstance(value, Real)
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
    elif isinstance(value, int) and value.bit_length() >= 64:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = repr(value) if fits(value, bool | float | None) else type(value).__name__
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def require_types(settings: Any) -> None:
    """Refuse settings, a dataclass, that are not what their annotations say, or numbers that float32 does not hold.

    Raises:
        UserError: one line.
    """
    for name, kind in _checkable(settings.__class__).items():
        value = getattr(settings, name)
        if not fits(value, kind) or (
            type(value) is not int and isinstance(value, Real) and not abs(float(value)) <= LARGEST
        ):
            raise UserError(f"{name}={shown(value)}: must be {_words(kind)}")


def require_whole(least: int = 1, **values: Any) -> None:
    """Refuse arguments that are not whole numbers from ``least`` on."""
    for name, value in values.items():
        if not (fits(value, int) and value >= least):
            raise UserError(f"{name}={shown(value)}: must be a whole number, at least {least}")


def require_numbers(**values: Any) -> None:
    """Refuse arguments that are not finite numbers."""
    for name, value in values.items():
        if not (fits(value, float) and abs(value) <= LARGEST):
            raise UserError(f"{name}={shown(value)}: must be a finite number")


@cache
def _checkable(settings: type) -> dict[str, Any]:
    """The types of a dataclass's fields; paths, tables and the like are left out."""
    hints = get_type_hints(settings)
    known = {name for name in hints if all(one in WORDS or get_origin(one) is Literal for one in _all(hints[name]))}
    return {name: hints[name] for name in hints if name in known}


def _all(kind: Any) -> tuple[Any, ...]:
    """The types of which a value may have any."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> str:
    """A type in words."""
    return " or ".join(WORDS[one] if one in WORDS else f"one of {', '.join(get_args(one))}" for one in _all(kind))
