"""Stop requests: SIGINT (Ctrl-C), SIGTERM and SIGHUP (closed terminal), handled the same way by all programs.

A program is either interrupted immediately, or polls for requests. In both cases a second request ends it at once,
without a traceback.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds after which an interrupted program that has not reacted is ended
SAME = 0.2  # seconds within which repeated signals count as one: terminal, timeout and parent may all send it


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, which: int):
        super().__init__()
        self.which = which


class Stopped(Exception):
    """A computation was aborted because the program was asked to stop; it has had no effect."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Context manager: raise `Interrupted` on requests, and end the program if it does not react within `GRACE`."""

    def interrupt(which: int) -> None:
        raise Interrupted(which)

    with _handling(interrupt, again=True, grace=GRACE):
        yield


@contextmanager
def stop_requests(again: bool = True) -> Iterator[list[int]]:
    """Context manager: yield a list to which the signal number of each request is appended, for the caller to poll.

    With ``again`` a repeated request ends the program at once. Ignored signals except SIGHUP are handled too, so
    that child processes receive them. Outside the main thread, which alone handles signals, the list stays empty.
    """
    requests: list[int] = []
    with _handling(requests.append, again, grace=None):
        yield requests


@contextmanager
def ended_by_requests() -> Iterator[None]:
    """Context manager: let requests end the program at once, for calls in which Python cannot run signal handlers."""
    handled = [which for which in SIGNALS if signal.getsignal(which) != signal.SIG_IGN]
    before = {which: signal.signal(which, signal.SIG_DFL) for which in handled}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@contextmanager
def _handling(do: Callable[[int], None], again: bool, grace: float | None) -> Iterator[None]:
    """Context manager: call ``do`` on signals.

    A separate thread watches for signals too, because a long or blocking call may keep the main thread from handling
    them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noticed = threading.Event()

    def handle(which: int, _: object) -> None:
        noticed.set()
        do(which)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_watch, args=(reading, noticed, again, grace), daemon=True).start()
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # as under nohup
    before = {which: signal.signal(which, handle) for which in SIGNALS if which not in ignored}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(woken)
        os.close(writing)


def _watch(reading: int, noticed: threading.Event, again: bool, grace: float | None) -> None:
    """End the program if a signal is repeated (with ``again``), or not handled within ``grace`` seconds."""
    first: dict[int, float] = {}
    with open(reading, "rb", buffering=0) as signals:
        while signal_number := signals.read(1):
            (which,) = signal_number
            if which not in SIGNALS:
                continue
            if again and time.monotonic() - first.setdefault(which, time.monotonic()) > SAME:
                os._exit(128 + which)
            if grace is not None and not noticed.wait(grace):
                os._exit(128 + which)
