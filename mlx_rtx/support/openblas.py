"""OpenBLAS under MLX on a Linux CPU: the system's, or else the one that ``make setup`` fetched.

MLX's wheels for Linux carry the reference BLAS. A library that was loaded before, with its symbols global, takes the
place of that, so this is imported before `mlx.core`: the package's ``__init__`` does.

``python openblas.py`` says by its exit code whether there is one to load.
"""

import ctypes
import sys
from pathlib import Path

SYSTEM = (
    "libopenblasp.so.0",  # Fedora, where the plain name is the one of a single thread
    "libopenblas_pthreads.so.0",  # openSUSE
    "libopenblas.so.0",  # Debian, Ubuntu, Arch
)
FETCHED = "usr/lib/*/openblas-pthread/libopenblas.so.0"  # * is the architecture
FETCHED_FIRST = (
    "usr/lib/*/libquadmath.so.0",
    "usr/lib/*/libgfortran.so.?",
)  # it needs the last, which may need the first


def prefer_openblas() -> bool:
    """Load OpenBLAS before MLX on Linux, so that MLX's CPU backend uses it; say whether that was done."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:  # too late where MLX is bound already
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
