"""Requests to stop, which a long program heeds when it can."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Ctrl-C and termination requests as they come, by signal number, instead of the end of the program.

    Its handlers, where both were ignored before, also let the processes that are begun hear of them. In another thread
    than the main one, which alone hears of signals, the list stays empty.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {
        which: signal.signal(which, lambda which, _: requests.append(which))
        for which in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield requests
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
