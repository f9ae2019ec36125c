"""Lock files: exclusive locks that the operating system releases when their process ends for any reason."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import remedy


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Context manager: hold the lock file ``path``, and delete it at the end.

    A lock file that a killed process left behind is not locked, and is reused.

    Args:
        path: the lock file.
        what: name of the locked resource, for the error message.

    Raises:
        UserError: if another process holds the lock, or the file cannot be created.
    """
    try:
        descriptor = _lock(path)
    except BlockingIOError:
        raise UserError(f"{what}: another process is using it; wait until it ends, or choose another") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock the file and return its descriptor; retry if the previous holder has deleted the file meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks, such as some network file systems
                return descriptor
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
