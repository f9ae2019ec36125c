"""Flags and config files to settings, and what is wrong with them in one line."""

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
from tyro import _errors as tyro_errors  # its hook for errors, private as yet: see pyproject.toml


def parse(command: type, arguments: Sequence[str], program: str) -> Any:
    """Fill in a settings dataclass from flags, one a field; help comes from the docstrings.

    Raises:
        UserError: one line on what was wrong.
    """
    _refuse_nul(arguments)
    with _errors_in_one_line({"": set(_flags(command))}):
        return _checked(tyro.cli(command, args=list(arguments), prog=program, config=(tyro.conf.OmitArgPrefixes,)))


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
    _refuse_nul(arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in choices:
        raise UserError(f"{arguments[0]}: is no subcommand; choose one of {', '.join(choices)}")
    with _errors_in_one_line({name: set(_flags(settings)) for name, (_, settings) in choices.items()}):
        settings = tyro.extras.overridable_config_cli(
            choices,
            args=list(arguments),
            prog=program,
            description=f"{description.strip()}\n\nEach has flags of its own: {program} {next(iter(choices))} --help",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return _checked(settings)


def _checked(settings: Any) -> Any:
    """Settings, without numbers that no flag means."""
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
    """Refuse what no file name and no text may hold; a shell cannot pass it, but a config file can."""
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{argument!r}: holds a NUL character; leave it out")


def _flags(settings: Any) -> Iterator[str]:
    """The flags that a settings dataclass, or an instance with others inside, stands for."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name, None)
        if dataclasses.is_dataclass(value):
            yield from _flags(value)
        else:
            yield "--" + field.name.replace("_", "-")


@contextlib.contextmanager
def _errors_in_one_line(flags: dict[str, set[str]]) -> Iterator[None]:
    """Make a `UserError` of what the parser refuses, in place of its box of text; ``flags`` are those by subcommand."""

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        raise UserError(_describe(event, flags))

    with tyro_errors.on_parse_error(refuse):
        yield


def _describe(event: tyro_errors.ParseErrorEvent, flags: dict[str, set[str]]) -> str:
    """A refusal in one line."""
    help_text = f"{event.prog} --help lists what there is"
    match event:
        case tyro_errors.InstantiationFailure(message=message, argument=argument):
            return message if argument is None else f"{_name(argument)}{_refused_value(argument, message)}"
        case tyro_errors.MissingSubcommand(subcommand_spec=spec, found_token=found):
            given = "a subcommand is missing" if found is None else f"{found}: is no subcommand"
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
    return f"the command line is not understood; {help_text}"  # of a kind that this version does not know


def _hint(word: str, flags: dict[str, set[str]]) -> str:
    """What an unknown flag may be meant for."""
    owners = [name for name, own in flags.items() if word in own]
    if any(owners):  # else there are no subcommands, and the word is no flag where it stands
        return f"it is a flag of {', '.join(owners)}, after that word; "
    near = [] if owners else difflib.get_close_matches(word, set().union(*flags.values()), n=2)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _refused_value(argument: Any, message: str) -> str:
    """What was given that a flag does not take, and what it takes, of the parser's own words on both."""
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
