"""What a user can cause, said in one line."""


class UserError(ValueError):
    """Bad input: the message names the argument, its value and the remedy, in one line.

    Commands print it and exit with code 2; in Python it is a ``ValueError``.
    """


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
