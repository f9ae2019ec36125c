"""Lets Ctrl-C end this project's programs without a traceback while they are still importing modules.

The package's ``__init__`` imports this module first. It does nothing if another program imports the package.
"""

import signal
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def is_own_program() -> bool:
    """Return whether Python was started to run a program of this project."""
    if sys.argv[0] == "-m":  # its value while Python imports the parent package of the module to run
        return any(word.partition(".")[0] == "mlx_rtx" for word in sys.orig_argv)
    if Path(sys.argv[0]).name == "mlx_rtx":  # the installed entry point
        return True
    return Path(sys.argv[0]).absolute().parent in (PROJECT / "scripts", PROJECT / "benchmarks")


if is_own_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
