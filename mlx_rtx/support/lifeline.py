"""Processes that end together: where one of several is lost, however that comes, the others do not wait for it.

Each has a connection to the first, over which nothing is said until the end. The system closes it with a process that
is killed; so this is heard of at once, also by one that waits within MLX for what will never come.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

WELL, FAILED = b".", b"!"  # last words: of a process that has done its work, and of one that has said what went wrong
PATIENCE = 60.0  # seconds in which all must have come
GRACE = 0.5  # seconds for one that failed to say why, before whoever started it hears that others have ended


class Lifeline:
    """A process's connection to those with which it ends.

    Args:
        rank, size: which of how many it is.
        address: at which the first can be reached.
        tell: gives all the first's bytes, given as many; see `mlx_rtx.training.ranks.Ranks.bytes_of_first`.
        remedy: what is said to help when one is lost.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        address: str,
        tell: Callable[[list[bytes]], list[bytes]],
        remedy: Callable[[], str],
    ):
        self.rank, self._remedy = rank, remedy
        self.last: Callable[[], object] = lambda: None
        """What is done before this process is ended."""
        self._over = False
        self._lock = threading.Lock()
        self._others: dict[int, socket.socket] = {}
        token = secrets.token_bytes(16)
        if rank == 0:
            server = _serve(address, size)
            _, token = tell([b"%5d" % server.getsockname()[1], token])
            self._others = _accepted(server, size, token)
            if missing := sorted({*range(1, size)} - self._others.keys()):
                text = f"warning: {address} is closed to ranks {missing}: should one of them be lost, end the others"
                print(text, file=sys.stderr, flush=True)
        else:
            port, token = tell([b"", b""])
            with contextlib.suppress(OSError):
                first = socket.create_connection((address, int(port)), timeout=PATIENCE)
                first.sendall(token + rank.to_bytes(4, "big"))
                self._others = {0: first}
        for other in self._others.values():
            other.settimeout(None)
            _keep_alive(other)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End this process when another one is lost or has failed."""
        with selectors.DefaultSelector() as waiting:
            for rank, other in self._others.items():
                waiting.register(other, selectors.EVENT_READ, rank)
            while waiting.get_map():
                for key, _ in waiting.select():
                    said = b""
                    with contextlib.suppress(OSError):
                        said = self._others[key.data].recv(1)
                    if said != WELL:
                        self._end(key.data, told=said == FAILED)
                        return
                    waiting.unregister(key.fileobj)

    def _end(self, lost: int, told: bool) -> None:
        """End this process, because another one has ended; say so, if nobody else does."""
        with self._lock:
            if self._over:
                return
            if not told and self.rank == min({0, 1} - {lost}):
                _say_alone(f"error: rank {lost} was lost, so all others have ended; {self._remedy()}")
            self._say(FAILED)
            with contextlib.suppress(Exception):
                self.last()
            if told:
                time.sleep(GRACE)
            os._exit(2)

    def _say(self, word: bytes) -> None:
        for other in self._others.values():
            with contextlib.suppress(OSError):
                other.sendall(word)

    def let_go(self, well: bool = True, wait: bool = False) -> None:
        """End the connection, after which this process may end by itself; it says why, unless it ends ``well``.

        Args:
            well: whether it does.
            wait: first wait a moment to be ended with another: one that was lost, or the first, which says what is
                wrong with all.
        """
        if wait:
            time.sleep(2 * GRACE)
        with self._lock:
            if not self._over:
                self._over = True
                self._say(WELL if well else FAILED)


def _say_alone(text: str) -> None:
    """Say a line on standard error, where MLX tells of connections, and may be in the middle of a line of its own."""
    with contextlib.suppress(OSError, ValueError):
        own = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(own, f"\n{text}\n".encode(errors="backslashreplace"))


def _serve(address: str, size: int) -> socket.socket:
    """A socket that can be called at an address, or at any, where it is not this machine's own name for itself."""
    try:
        return socket.create_server((address, 0), backlog=size)
    except OSError:
        return socket.create_server(("", 0), backlog=size)


def _accepted(server: socket.socket, size: int, token: bytes) -> dict[int, socket.socket]:
    """Connections of all other processes by rank, of those that come; of others that call, none."""
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + PATIENCE
    with server, contextlib.suppress(TimeoutError):
        while len(found) < size - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            caller, _ = server.accept()
            caller.settimeout(1.0)
            said = b""
            with contextlib.suppress(OSError):
                said = caller.recv(len(token) + 4, socket.MSG_WAITALL)
            if len(said) == len(token) + 4 and secrets.compare_digest(said[:-4], token):
                found[int.from_bytes(said[-4:], "big")] = caller
            else:
                caller.close()
    return found


def _keep_alive(connection: socket.socket) -> None:
    """Have the system ask whether a machine is still there, after a silence of half a minute, and give it as long."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}.items():
        if hasattr(socket, name):  # the second is what macOS calls the first
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
