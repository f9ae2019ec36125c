"""What a user can cause, said in one line."""

from typing import Any


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the remedy, in one line.

    Commands print it and exit with code 2; in Python it is a ``ValueError``.
    """


class NotInstalled(UserError):
    """A package that is optional is missing."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_positive(settings: Any, *names: str) -> None:
    """Refuse fields of ``settings`` that are below 1."""
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"{name}={value}: must be at least 1")


def require_at_most(settings: Any, **bounds: int) -> None:
    """Refuse fields of ``settings``, where given, above their bound: work would not end, or no index reach them."""
    for name, most in bounds.items():
        value = getattr(settings, name)
        require(value is None or value <= most, f"{name}={value}: must be at most {most:,}")


def require_each(settings: Any, *names: str, least: float, most: float) -> None:
    """Refuse fields of ``settings`` that are tuples of none, or of a number out of bounds."""
    for name in names:
        values = getattr(settings, name)
        require(bool(values), f"{name}: name at least one")
        for value in values:
            require(least <= value <= most, f"{name}={value}: must lie in {least:,} … {most:,}")
