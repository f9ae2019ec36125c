"""Ends all processes of a distributed run if one of them is lost, so that the others do not wait for it forever.

Each process keeps a connection to the first one, and sends one byte when it ends. The operating system closes the
connection of a killed process, which a thread of the others notices at once, even while MLX blocks in an exchange.
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

WELL, FAILED = b".", b"!"  # sent by a process that ends normally, or that fails and has reported its error
PATIENCE = 60.0  # seconds within which all processes must have connected
GRACE = 0.5  # seconds for a failing process to print its error before the others end


class Lifeline:
    """A process's connection to the other processes of its run.

    Args:
        rank, size: rank of this process, and number of processes.
        address: network address of the first process.
        tell: broadcasts byte strings from the first process to all, which pass as many; see
            `mlx_rtx.training.ranks.Ranks.broadcast_bytes`.
        remedy: returns the remedy for the error message if a process is lost.
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
        """Function called before this process is ended."""
        self._over = False
        self._lock = threading.Lock()
        self._others: dict[int, socket.socket] = {}
        token = secrets.token_bytes(16)
        if rank == 0:
            server = _serve(address, size)
            _, token = tell([b"%5d" % server.getsockname()[1], token])
            self._others = _accepted(server, size, token)
            if missing := sorted({*range(1, size)} - self._others.keys()):
                text = f"warning: ranks {missing} cannot connect to {address}: if one is lost, end the others yourself"
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
        """End this process if another one is lost or has failed."""
        with selectors.DefaultSelector() as waiting:
            for rank, other in self._others.items():
                waiting.register(other, selectors.EVENT_READ, rank)
            while waiting.get_map():
                for key, _ in waiting.select():
                    received = b""
                    with contextlib.suppress(OSError):
                        received = self._others[key.data].recv(1)
                    if received != WELL:
                        self._end(key.data, told=received == FAILED)
                        return
                    waiting.unregister(key.fileobj)

    def _end(self, lost: int, told: bool) -> None:
        """End this process because ``lost`` has ended; report it unless that process has (``told``)."""
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
        """Close the connection; afterwards this process ends independently.

        Args:
            well: whether it ends normally; otherwise it must report its error itself.
            wait: first wait briefly, in case another process ends this one: because it was lost, or because the first
                process reports an error for all.
        """
        if wait:
            time.sleep(2 * GRACE)
        with self._lock:
            if not self._over:
                self._over = True
                self._say(WELL if well else FAILED)


def _say_alone(text: str) -> None:
    """Print a line on standard error and silence later output there, since MLX may be printing connection errors."""
    with contextlib.suppress(OSError, ValueError):
        own = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(own, f"\n{text}\n".encode(errors="backslashreplace"))


def _serve(address: str, size: int) -> socket.socket:
    """Return a server socket at ``address``, or at all addresses if this machine does not know it as its own."""
    try:
        return socket.create_server((address, 0), backlog=size)
    except OSError:
        return socket.create_server(("", 0), backlog=size)


def _accepted(server: socket.socket, size: int, token: bytes) -> dict[int, socket.socket]:
    """Return the connections of the other processes by rank; callers without the token are rejected."""
    found: dict[int, socket.socket] = {}
    end = time.monotonic() + PATIENCE
    with server, contextlib.suppress(TimeoutError):
        while len(found) < size - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            caller, _ = server.accept()
            caller.settimeout(1.0)
            received = b""
            with contextlib.suppress(OSError):
                received = caller.recv(len(token) + 4, socket.MSG_WAITALL)
            if len(received) == len(token) + 4 and secrets.compare_digest(received[:-4], token):
                found[int.from_bytes(received[-4:], "big")] = caller
            else:
                caller.close()
    return found


def _keep_alive(connection: socket.socket) -> None:
    """Enable TCP keep-alive: probe after 30 s of silence, and close the connection after 30 s without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}.items():
        if hasattr(socket, name):  # macOS calls TCP_KEEPIDLE TCP_KEEPALIVE
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
