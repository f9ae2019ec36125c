"""One process at a time: a lock that ends with the process that holds it, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import remedy


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs. A file that a killed process left is no lock, and goes.

    Args:
        path: the lock file, beside what it is about.
        what: that which others are kept from, for the message.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    try:
        descriptor = _lock(path)
    except BlockingIOError:
        raise UserError(f"{what}: another process is at work on it; wait for its end, or choose another") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The descriptor of a lock file that is locked and still in its place: the one who held it before removes it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # a file system without locks, such as some over the network
                return descriptor
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
