"""While one of this project's programs is being imported, Ctrl-C ends it without a traceback.

Imported before all else: the package's ``__init__`` does. Whoever else imports the package is left alone.
"""

import signal
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def is_own_program() -> bool:
    """Whether Python was called to run a program of this project."""
    if sys.argv[0] == "-m":  # as it is while the package of the module that was named is imported
        return any(word.partition(".")[0] == "mlx_rtx" for word in sys.orig_argv)
    if Path(sys.argv[0]).name == "mlx_rtx":  # as the package's installation made it
        return True
    return Path(sys.argv[0]).absolute().parent in (PROJECT / "scripts", PROJECT / "benchmarks")


if is_own_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
