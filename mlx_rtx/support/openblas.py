"""Loads OpenBLAS for MLX on a Linux CPU: that of the system, or else the one that ``make setup`` downloaded.

MLX's wheels for Linux contain the slow reference BLAS. A library that was loaded earlier with global symbols takes
precedence over it, so this module must be imported before `mlx.core`, as the package's ``__init__`` does.

``python openblas.py`` exits with 0 if it can load OpenBLAS, else with 1.
"""

import ctypes
import sys
from pathlib import Path

SYSTEM = (
    "libopenblasp.so.0",  # Fedora, where libopenblas.so.0 is single-threaded
    "libopenblas_pthreads.so.0",  # openSUSE
    "libopenblas.so.0",  # Debian, Ubuntu, Arch
)
FETCHED = "usr/lib/*/openblas-pthread/libopenblas.so.0"  # * is the architecture
FETCHED_FIRST = (
    "usr/lib/*/libquadmath.so.0",
    "usr/lib/*/libgfortran.so.?",
)  # OpenBLAS needs libgfortran, which may need libquadmath


def prefer_openblas() -> bool:
    """Load OpenBLAS on Linux, so that MLX's CPU backend uses it; return whether it was loaded before MLX."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:  # too late if MLX is loaded already
        return False
    return any(_load(name) for name in SYSTEM) or _load_fetched(Path(sys.prefix) / "openblas")


def _load_fetched(folder: Path) -> bool:
    for pattern in FETCHED_FIRST:
        for path in folder.glob(pattern):
            _load(str(path))
    return any(_load(str(path)) for path in folder.glob(FETCHED))


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


HAS_OPENBLAS = prefer_openblas()

if __name__ == "__main__":
    sys.exit(not HAS_OPENBLAS)
