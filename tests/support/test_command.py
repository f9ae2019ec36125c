"""How programs end: errors of the user and the system give one line and an exit code."""

import errno
import os
import subprocess
import sys

from mlx_rtx.support.command import LONGEST, run_command
from mlx_rtx.support.errors import UserError

import pytest


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("noise=0: must be at least 1,\n e.g. 4096"), "noise=0: must be at least 1, e.g. 4096"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: permission denied; name another"),
        (OSError(errno.ENOSPC, "No space left on device"), "reading or writing failed: no space left on device; free"),
        (OSError(errno.EBADF, "Bad file descriptor", 7), "7: bad file descriptor"),
        (MemoryError("Unable to allocate 16.0 GiB"), "out of memory: Unable to allocate 16.0 GiB; process less"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_give_one_line(error, message, capsys):
    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


def test_a_bug_shows_its_traceback():
    def main(arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_long_messages_are_shortened_in_the_middle(capsys):
    """A message starts with what is wrong and ends with the remedy."""

    def main(arguments):
        raise UserError(f"--data {'x' * 10_000}: not found; name a file")

    with pytest.raises(SystemExit):
        run_command(main)
    output = capsys.readouterr().err
    assert output.startswith("error: --data xxx")
    assert output.endswith("xxx: not found; name a file\n")
    assert " … " in output
    assert len(output) < LONGEST + 20


def shell(words, **environment):
    """Run a command of the package in a shell; return its exit code and output."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m mlx_rtx{words}"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_closed_output_is_accepted():
    assert shell(".scaling >&- 2>&-") == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a device that is always full")
def test_a_full_disk_at_the_output_is_reported():
    code, _, output = shell(".scaling --help >/dev/full")
    assert code == 2
    assert output == "error: reading or writing failed: no space left on device; free some space and run again\n"


def test_characters_outside_of_the_encoding_are_escaped():
    code, out, err = shell(".scaling", PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert out.startswith("\\u03b3 in [1 - 2\\u03b2, 1 - \\u03b2]")
