"""Parses command-line flags and config files into settings, with errors in one line."""

import contextlib
import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError

import tyro
from tyro import _errors as tyro_errors  # hook for errors; private, hence the pinned version in pyproject.toml


def parse(command: type, arguments: Sequence[str], program: str) -> Any:
    """Return a settings dataclass filled in from flags, one per field; the help text comes from its docstrings.

    Raises:
        UserError: if the arguments are invalid.
    """
    _refuse_nul(arguments)
    with _errors_in_one_line({"": set(_flags(command))}):
        return _checked(tyro.cli(command, args=list(arguments), prog=program, config=(tyro.conf.OmitArgPrefixes,)))


def parse_subcommand(
    choices: dict[str, tuple[str, Any]], arguments: Sequence[str], program: str, description: str
) -> Any:
    """Return the settings of one of several subcommands; nested fields become flags of their own name.

    Args:
        choices: description and settings (a dataclass instance with the defaults) of each subcommand.
        arguments: a subcommand, then flags. If a flag is repeated, the last one counts.
        program: command line of the program, for usage and help.
        description: description of the program, for its help.

    Raises:
        UserError: if the arguments are invalid.
    """
    _refuse_nul(arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in choices:
        raise UserError(f"{arguments[0]}: unknown subcommand; choose one of {', '.join(choices)}")
    with _errors_in_one_line({name: set(_flags(settings)) for name, (_, settings) in choices.items()}):
        settings = tyro.extras.overridable_config_cli(
            choices,
            args=list(arguments),
            prog=program,
            description=f"{description.strip()}\n\nEach has its own flags, see {program} {next(iter(choices))} --help",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return _checked(settings)


def _checked(settings: Any) -> Any:
    """Return the settings; raise `UserError` for numbers that are not finite or not below 64 bits."""
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), "--" + field.name.replace("_", "-")
        for one in value if isinstance(value, tuple) else [value]:
            if dataclasses.is_dataclass(one):
                _checked(one)
            elif isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{flag} {one}: must be a finite number")
            elif isinstance(one, int) and abs(one) >= 2**63:
                raise UserError(f"{flag} {one}: must have less than 64 bits")
    return settings


def _refuse_nul(arguments: Sequence[str]) -> None:
    """Raise `UserError` for NUL characters, which file names cannot contain; config files may contain them."""
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{argument!r}: contains a NUL character; remove it")


def _flags(settings: Any) -> Iterator[str]:
    """Yield the flags of a settings dataclass, including those of nested ones."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name, None)
        if dataclasses.is_dataclass(value):
            yield from _flags(value)
        else:
            yield "--" + field.name.replace("_", "-")


@contextlib.contextmanager
def _errors_in_one_line(flags: dict[str, set[str]]) -> Iterator[None]:
    """Context manager: raise the parser's errors as `UserError`; ``flags`` are those of each subcommand."""

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise UserError(_describe(event, flags))

    with tyro_errors.on_parse_error(refuse):
        yield


def _describe(event: tyro_errors.ParseErrorEvent, flags: dict[str, set[str]]) -> str:
    """Describe a parse error in one line."""
    help_text = f"see {event.prog} --help"
    match event:
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            return message if argument is None else f"{_name(argument)}{_refused_value(argument, message)}"
        case tyro_errors.MissingSubcommand(subcommand_spec=spec, found_token=found):
            given = "a subcommand is missing" if found is None else f"{found}: unknown subcommand"
            return f"{given}; choose one of {', '.join(spec.parser_from_name)}"
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            return f"Unrecognized: {' '.join(tokens)}; {_hint(tokens[0].partition('=')[0], flags)}{help_text}"
        case tyro_errors.MissingArgs(missing_arguments=missing):
            return f"Missing: {', '.join(_name(each.arg) for each in missing)}; {help_text}"
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=allowed):
            return f"{_name(argument)} {value}: must be one of {', '.join(allowed)}"
        case tyro_errors.BadValue(argument=argument, offending_value=None):
            return f"{_name(argument)}: needs a value ({argument.lowered.metavar}); {help_text}"
        case tyro_errors.BadValue(argument=argument, offending_value=value):
            return f"{_name(argument)}: takes no value {value}; {help_text}"
    return f"invalid command line; {help_text}"  # errors that newer versions of tyro may add


def _hint(word: str, flags: dict[str, set[str]]) -> str:
    """Suggest what an unknown flag may have been meant to be."""
    owners = [name for name, own in flags.items() if word in own]
    if any(owners):  # else there are no subcommands
        return f"it is a flag of {', '.join(owners)}: put it after the subcommand; "
    near = [] if owners else difflib.get_close_matches(word, set().union(*flags.values()), n=2)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _refused_value(argument: Any, message: str) -> str:
    """Return the rejected value and what is allowed, rewritten from the parser's message."""
    for pattern, kind in (
        (r"invalid literal for int\(\) with base 10: (.*)", "must be a whole number"),
        (r"could not convert string to float: (.*)", "must be a number"),
        (
            r"no type matching .*? could be instantiated from \[(.*?)\]\.",
            f"must be {argument.lowered.metavar.replace('{None}|', 'None or ')}",
        ),
        (r"(Exceeds the limit) .*for integer string conversion", "has too many digits"),
    ):
        if found := re.match(pattern, message, re.DOTALL):
            return f": {kind}" if found[1].startswith("Exceeds") else f" {found[1]}: {kind}"
    return f": {message}"


def _name(argument: Any) -> str:
    """Return a flag as typed, or the placeholder of a positional argument."""
    lowered = argument.lowered
    return str(lowered.metavar) if argument.is_positional() else lowered.name_or_flags[0]


def read_config_file(path: Path) -> list[str]:
    """Return the flags that correspond to a TOML file of ``name = value`` lines.

    Raises:
        UserError: if the file cannot be read, or contains tables or lists.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name a TOML file") from None
    except (ValueError, RecursionError) as error:  # ValueError: also for invalid UTF-8 and huge integers
        raise UserError(f"--config {path}: invalid TOML ({error})") from None
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, dict | list):
            raise UserError(f"--config {path}: {name}: write plain lines such as noise = 4096, without tables or lists")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags
