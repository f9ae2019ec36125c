"""Errors that a user can cause, and checks that raise them."""

from typing import Any


class UserError(ValueError):
    """Invalid input; the message names the argument, its value and the remedy in one line.

    Commands print the message and exit with code 2; in Python it is a ``ValueError``.
    """


class NotInstalled(UserError):
    """An optional package is not installed."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with ``message`` unless ``condition`` is true."""
    if not condition:
        raise UserError(message)


def require_positive(settings: Any, *names: str) -> None:
    """Raise `UserError` if any of these fields of ``settings`` is below 1."""
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"{name}={value}: must be at least 1")


def require_at_most(settings: Any, **bounds: int) -> None:
    """Raise `UserError` if a field of ``settings`` exceeds its bound; None is allowed.

    The bounds keep indices valid and running times finite.
    """
    for name, most in bounds.items():
        value = getattr(settings, name)
        require(value is None or value <= most, f"{name}={value}: must be at most {most:,}")


def require_each(settings: Any, *names: str, least: float, most: float) -> None:
    """Raise `UserError` if any of these tuples of numbers is empty or has one outside ``least`` … ``most``."""
    for name in names:
        values = getattr(settings, name)
        require(bool(values), f"{name}: name at least one")
        for value in values:
            require(least <= value <= most, f"{name}={value}: must lie in {least:,} … {most:,}")
