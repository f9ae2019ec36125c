"""Requests to stop: Ctrl-C, termination and a terminal that is closed, heard alike by all programs.

A program either is interrupted where it stands, or heeds requests when it can. Either way who insists is not kept
waiting, and sees no traceback.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 1.0  # seconds in which a program that is interrupted must have noticed, else it is ended
SAME = 0.2  # seconds in which a signal that comes twice is one: terminals, timeout and parents may all send it


class Interrupted(KeyboardInterrupt):
    """A program was asked to end by a signal."""

    def __init__(self, which: int):
        super().__init__()
        self.which = which


class Stopped(Exception):
    """A computation was broken off because its program was asked to stop; nothing of it was kept."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let requests interrupt what runs (`Interrupted`), and end the program if that takes longer than `GRACE`."""

    def interrupt(which: int) -> None:
        raise Interrupted(which)

    with _heard(interrupt, again=True, grace=GRACE):
        yield


@contextmanager
def stop_requests(again: bool = True) -> Iterator[list[int]]:
    """Requests as they come, by signal number, to be heeded; what comes ``again`` ends the program at once, if asked.

    Its handlers, where signals were ignored before, also let the processes that are begun hear of them. In another
    thread than the main one, which alone hears of signals, the list stays empty.
    """
    requests: list[int] = []
    with _heard(requests.append, again, grace=None):
        yield requests


@contextmanager
def ended_by_requests() -> Iterator[None]:
    """Let a request end the program at once, within what keeps the interpreter from hearing of any."""
    heard = [which for which in SIGNALS if signal.getsignal(which) != signal.SIG_IGN]
    before = {which: signal.signal(which, signal.SIG_DFL) for which in heard}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@contextmanager
def _heard(do: Callable[[int], None], again: bool, grace: float | None) -> Iterator[None]:
    """Call ``do`` on signals.

    A thread learns of them at once, as the main one may not: it is in a long call, or in one that blocks.
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
    unheard = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # as nohup has it
    before = {which: signal.signal(which, handle) for which in SIGNALS if which not in unheard}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(woken)
        os.close(writing)


def _watch(reading: int, noticed: threading.Event, again: bool, grace: float | None) -> None:
    """End the program when a signal comes ``again``, or is not noticed in time."""
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
