"""Runs a program's main function and turns errors that a user can cause into one line and an exit code."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.stopping import interruptible

LONGEST = 600  # maximum characters of an error message
GPU_ENDED = "[METAL] Command buffer execution failed"  # MLX's error if macOS aborted GPU work
BROKEN_PIPE = 128 + signal.SIGPIPE  # conventional exit code if the reader of our output closed the pipe


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` with the command line's arguments.

    `UserError` and errors of the operating system (files, memory, aborted GPU work) are printed as one line, with exit
    code 2. Signals exit with code 128 plus their number.
    """
    _ready_output()
    try:
        try:
            with interruptible():
                main(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except UserError as error:
        _complain(str(error))
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + getattr(interrupt, "which", signal.SIGINT))
    except BrokenPipeError:
        _lose(sys.stdout)
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        _lose(sys.stdout)
        _complain(_describe(error))
    except MemoryError as error:
        _complain(f"out of memory: {str(error) or 'allocation failed'}; process less at a time")
    except RuntimeError as error:
        if GPU_ENDED not in str(error):
            raise
        remedy = "a smaller --batch or --segment" if "memory" in str(error).lower() else "docs/mac.md"
        _complain(f"macOS aborted GPU work ({error}); run again, a training with --resume; remedy: {remedy}")


def _ready_output() -> None:
    """Make printing safe: escape characters that the encoding lacks, and discard output if a stream is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(text: str) -> None:
    """Print an error in one line on standard error, and exit with code 2."""
    text = " ".join(text.split())
    if len(text) > LONGEST:  # keep the start, which names the error, and the end, which names the remedy
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    with contextlib.suppress(OSError):
        print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _describe(error: OSError) -> str:
    """Describe an error of the operating system, and a remedy."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{_text(error.filename)}: {reason[:1].lower() + reason[1:]}; name another, or make it accessible"
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "fix the cause"
    return f"reading or writing failed: {reason[:1].lower() + reason[1:]}; {remedy} and run again"


def _text(name: str | bytes | int) -> str:
    """Return a file name, as given to the operating system, as text; it may be a file descriptor."""
    return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def _lose(stream: TextIO) -> None:
    """Discard buffered output, so that flushing it at exit does not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
