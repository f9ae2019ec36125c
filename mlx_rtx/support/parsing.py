"""What the commands share: flags and config files to settings, and errors in one line."""

import contextlib
import io
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError

import tyro


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` on the command line's arguments; a `UserError` becomes one line and exit code 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parse(command: type, arguments: Sequence[str], program: str) -> Any:
    """Fill in a settings dataclass from flags, one a field; help comes from the docstrings.

    Raises:
        UserError: one line on what was wrong.
    """
    with _complaints_in_one_line():
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
    with _complaints_in_one_line():
        return tyro.extras.overridable_config_cli(
            choices,
            args=list(arguments),
            prog=program,
            description=description,
            config=(tyro.conf.OmitArgPrefixes,),
        )


@contextlib.contextmanager
def _complaints_in_one_line() -> Iterator[None]:
    """Turn the parser's boxed complaint and exit into a `UserError`; help passes."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def read_config_file(path: Path) -> list[str]:
    """The flags that a TOML file of ``name = value`` lines stands for."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: no TOML ({error})") from None
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, dict | list):
            raise UserError(f"--config {path}: {name}: write plain lines such as noise = 4096, without tables or lists")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def _one_line(box: str) -> str:
    """A parser's boxed complaint as one line: without frame, title, and pointers to several helps."""
    lines = [re.sub(r"[─-╿]+|-{3,}|^[|+]|[|+]$", " ", line).strip() for line in box.splitlines()[1:]]
    text = " ".join(line for line in lines if line and not re.match(r"in .* --help$", line))
    text = re.sub(r"\s*(For full helptext|Argument helptext:).*", "", text).strip()
    own = re.sub(r"^Error parsing \S*__tyro\S*: ", "", text)  # a UserError of ours, raised while parsing
    return own if own != text else f"{text.rstrip('.')}; --help lists what there is"
