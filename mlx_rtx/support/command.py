"""How each of this project's programs runs: whatever its user brings about ends in one line and an exit code."""

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

LONGEST = 600  # characters of a complaint
GPU_ENDED = "[METAL] Command buffer execution failed"  # how MLX tells that macOS broke off what the GPU was doing
BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell gives where whoever read our output has seen enough


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` on the command line's arguments.

    A `UserError`, and what the system refuses or breaks off, become one line and exit code 2; signals become 128 and
    their number.
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
        _complain(f"memory: {str(error) or 'there is no more'}; ask for less at a time")
    except RuntimeError as error:
        if GPU_ENDED not in str(error):
            raise
        remedy = "a smaller --batch or --segment" if "memory" in str(error).lower() else "docs/mac.md"
        _complain(f"macOS ended work on the GPU ({error}); call again, a training with --resume; what helps: {remedy}")


def _ready_output() -> None:
    """Let any text be written: what an encoding lacks is escaped, what is closed takes all and keeps nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it stays)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(text: str) -> None:
    """Say in one line on standard error what was wrong, and end."""
    text = " ".join(text.split())
    if len(text) > LONGEST:  # it begins with what is wrong, and ends with the remedy
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    with contextlib.suppress(OSError):
        print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _describe(error: OSError) -> str:
    """What the system refused, and what may help."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{_text(error.filename)}: {reason[:1].lower() + reason[1:]}; name another, or make it accessible"
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "see to it"
    return f"reading or writing failed: {reason[:1].lower() + reason[1:]}; {remedy}, and call again"


def _text(name: str | bytes | int) -> str:
    """A file's name as the system was given it: a descriptor, perhaps."""
    return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def _lose(stream: TextIO) -> None:
    """Let what is still to be written go nowhere, so that the end of the program does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
