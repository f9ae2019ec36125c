"""Flags and config files to settings, and what is wrong with them in one line."""

import contextlib
import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError

import tyro
from tyro import _errors as tyro_errors  # its hook for errors, private as yet: see pyproject.toml


def parse(command: type, arguments: Sequence[str], program: str) -> Any:
    """Fill in a settings dataclass from flags, one a field; help comes from the docstrings.

    Raises:
        UserError: one line on what was wrong.
    """
    with _errors_in_one_line(set(_flags(command))):
        return tyro.cli(command, args=list(arguments), prog=program, config=(tyro.conf.OmitArgPrefixes,))


def parse_subcommand(
    choices: dict[str, tuple[str, Any]], arguments: Sequence[str], program: str, description: str
) -> Any:
    """Fill in the settings of one of several subcommands; fields at any depth are flags of their own name.

    Args:
        choices: description and settings (a dataclass instance, the flags' defaults) of each subcommand.
        arguments: a subcommand, then flags. Where a flag comes twice, the last one counts.
        program: how the command is called, for usage and help.
        description: what it does.

    Raises:
        UserError: one line on what was wrong.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in choices:
        raise UserError(f"{arguments[0]}: is no subcommand; choose one of {', '.join(choices)}")
    with _errors_in_one_line({flag for _, settings in choices.values() for flag in _flags(settings)}):
        return tyro.extras.overridable_config_cli(
            choices,
            args=list(arguments),
            prog=program,
            description=description,
            config=(tyro.conf.OmitArgPrefixes,),
        )


def _flags(settings: Any) -> Iterator[str]:
    """The flags that a settings dataclass, or an instance with others inside, stands for."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name, None)
        if dataclasses.is_dataclass(value):
            yield from _flags(value)
        else:
            yield "--" + field.name.replace("_", "-")


@contextlib.contextmanager
def _errors_in_one_line(flags: set[str]) -> Iterator[None]:
    """Make a `UserError` of what the parser refuses, in place of its box of text."""

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        if text := _describe(event, flags):
            raise UserError(text)

    with tyro_errors.on_parse_error(refuse):
        yield


def _describe(event: tyro_errors.ParseErrorEvent, flags: set[str]) -> str | None:
    """A refusal in one line; None of a kind that this version does not know, which the parser then prints itself."""
    help_text = f"{event.prog} --help lists what there is"
    match event:
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            return " ".join(message.split()) if argument is None else f"{_name(argument)}: {' '.join(message.split())}"
        case tyro_errors.MissingSubcommand(subcommand_spec=spec, found_token=found):
            given = "a subcommand is missing" if found is None else f"{found}: is no subcommand"
            return f"{given}; choose one of {', '.join(spec.parser_from_name)}"
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            near = difflib.get_close_matches(tokens[0], flags, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            return f"Unrecognized: {' '.join(tokens)}; {hint}{help_text}"
        case tyro_errors.MissingArgs(missing_arguments=missing):
            return f"Missing: {', '.join(_name(each.arg) for each in missing)}; {help_text}"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=allowed):
            return f"{_name(argument)} {value}: must be one of {', '.join(allowed)}"
        case tyro_errors.BadValue(argument=argument, offending_value=None):
            return f"{_name(argument)}: needs a value ({argument.lowered.metavar}); {help_text}"
        case tyro_errors.BadValue(argument=argument, offending_value=value):
            return f"{_name(argument)}: takes no value {value}; {help_text}"
    return None


def _name(argument: Any) -> str:
    """A flag as it is typed, or what stands for a positional argument."""
    lowered = argument.lowered
    return str(lowered.metavar) if argument.is_positional() else lowered.name_or_flags[0]


def read_config_file(path: Path) -> list[str]:
    """The flags that a TOML file of ``name = value`` lines stands for."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name a TOML file") from None
    except (ValueError, RecursionError) as error:  # no UTF-8 among them, and integers of thousands of digits
        raise UserError(f"--config {path}: no TOML ({error})") from None
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, dict | list):
            raise UserError(f"--config {path}: {name}: write plain lines such as noise = 4096, without tables or lists")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags
