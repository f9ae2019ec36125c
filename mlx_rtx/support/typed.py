"""Type checks of values from files and callers."""

import types
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mlx_rtx.support.errors import UserError, require

T = TypeVar("T")
SHOWN = 60  # maximum characters of a value in a message
LARGEST = 3.4028234e38  # largest float32
WORDS = {
    int: "a whole number", float: "a finite number", bool: "True or False", str: "text", types.NoneType: "None",
}  # fmt: skip


def fits(value: Any, kind: Any) -> bool:
    """Return whether ``value`` has the type ``kind``: a type that JSON represents, or a union of them.

    Integers must fit into 64 bits; an integer is accepted as a float, but not a bool as an integer.

    Example:
        >>> fits(3, float), fits(True, int), fits([1, "2"], list[int]), fits(None, int | None)
        (True, False, False, True)
    """
    if type(value) is kind and kind is not int:  # fast path
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
    if origin is tuple:  # tuple[T, ...]
        return isinstance(value, tuple) and all(fits(one, arguments[0]) for one in value)
    if origin is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if kind is float:
        return fits(value, int) if isinstance(value, Integral) else isinstance(value, Real)
    return isinstance(value, kind)


def make(kind: type[T], values: Any) -> T:
    """Return a dataclass made from JSON values; missing values take their defaults.

    Raises:
        UserError: if a required value is missing, or a value is unknown, has the wrong type, or is rejected by the
            dataclass itself.
    """
    require(isinstance(values, dict), f"{kind.__name__}: must be a table of names and values")
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(cast(Any, kind))}
    for name, value in values.items():
        require(name in known, f"{shown(name)}: unknown setting of {kind.__name__}")
        require(fits(value, known[name]), f"{name}={shown(value)}: has the wrong type for {kind.__name__}")
    try:
        return kind(**values)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # TypeError: a value is missing
        raise UserError(f"{kind.__name__}: {error}") from None


def shown(value: Any) -> str:
    """Return a value of unknown size as one short line of text."""
    if isinstance(value, str):
        text = ascii(value)
    elif isinstance(value, int) and value.bit_length() >= 64:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = repr(value) if fits(value, bool | float | None) else type(value).__name__
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def require_types(settings: Any) -> None:
    """Check the fields of a dataclass against their annotations.

    Raises:
        UserError: if a field has the wrong type, or is a number beyond the range of float32.
    """
    for name, kind in _checkable(settings.__class__).items():
        value = getattr(settings, name)
        if not fits(value, kind) or (
            type(value) is not int and isinstance(value, Real) and not abs(float(value)) <= LARGEST
        ):
            raise UserError(f"{name}={shown(value)}: must be {_words(kind)}")


def require_whole(least: int = 1, **values: Any) -> None:
    """Raise `UserError` unless all ``values`` are whole numbers of at least ``least``."""
    for name, value in values.items():
        if not (fits(value, int) and value >= least):
            raise UserError(f"{name}={shown(value)}: must be a whole number, at least {least}")


def require_numbers(**values: Any) -> None:
    """Raise `UserError` unless all ``values`` are finite numbers."""
    for name, value in values.items():
        if not (fits(value, float) and abs(value) <= LARGEST):
            raise UserError(f"{name}={shown(value)}: must be a finite number")


@cache
def _checkable(settings: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, without those that are not checked, such as paths and tables."""
    hints = get_type_hints(settings)
    known = {name for name in hints if all(one in WORDS or get_origin(one) is Literal for one in _all(hints[name]))}
    return {name: hints[name] for name in hints if name in known}


def _all(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> str:
    """Describe a type in words."""
    return " or ".join(WORDS[one] if one in WORDS else f"one of {', '.join(get_args(one))}" for one in _all(kind))
