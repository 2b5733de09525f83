"""Detects the death of another process or its machine, so that no process waits forever.

Each process keeps a connection to the main one, on which nothing is sent while all is well. A process that dies ends
its connection; a machine that dies, or a cut cable, is found by the probes of TCP's keep-alive, which the system
answers also while a process is deep in a computation. Whoever notices tells the rest.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

from robustcords.errors import Interrupted, LostProcess, RunError, continuation
from robustcords.runtime import collectives

MEETING_S = 45.0
"""How long processes that no torchrun watches over may take to meet."""

GRACE_S = 10.0
"""How long a process may take to end by itself once another is lost."""

_CONNECT_S, _GREETING_S = 20.0, 5.0
_IDLE_S, _INTERVAL_S, _PROBES = 10, 5, 4  # a silent machine is lost after 30 s
_DONE, _STOPPED = b".", b"!"
_TOKEN, _RANK, _MESSAGE = 16, 8, 4096


class Watch:
    """Context that monitors the other processes; every process enters it at the same point.

    `lost_within` tells whether a computation failed because a process was lost. A process that keeps waiting for a lost
    one is ended some seconds later, with exit status 1.

    Args:
        on_interrupted: called in a separate thread when another process receives a signal.
    """

    def __init__(self, on_interrupted: Callable[[Interrupted], None] | None = None) -> None:
        self._on_interrupted = on_interrupted
        self._leaving = False
        self._noticed = threading.Event()
        self._error: LostProcess | None = None
        self._peers: dict[socket.socket, int] = {}
        self._server: socket.socket | None = None

    def __enter__(self) -> Watch:
        """Connects the processes; warns, and monitors nothing, if that fails.

        Raises:
            LostProcess: another process died before they were connected.
        """
        if collectives.world_size() > 1:
            try:
                port, token = collectives.decide_together(self._listen)
                connected = self._accept(token) if self._server else self._connect(port, token)
                everyone = all(collectives.gather_objects(lambda: connected))
            except RuntimeError as error:
                text = f"another process has died at the start: {' '.join(str(error).split())}"
                raise LostProcess(text, speaks=collectives.rank() < 2, died=True) from error
            if everyone:
                threading.Thread(target=self._watch, daemon=True).start()
            else:
                text = "the processes cannot monitor each other; if one dies, others may wait for it"
                warnings.warn(text, stacklevel=2)
                self._close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Tells the other processes that this one is done, or why it fails."""
        self._leaving = True
        word = f"{kind.__name__}: {error}".encode(errors="replace")[:_MESSAGE] if kind else _DONE
        if isinstance(error, Interrupted):
            word = _STOPPED + bytes([error.number or 0])
        self._say(word)
        self._close()

    def lost_within(self, seconds: float) -> LostProcess | None:
        """Returns the error to end with if another process is lost, or turns out to be within some seconds."""
        if self._peers:
            self._noticed.wait(seconds)
        return self._error

    def _listen(self) -> tuple[int, bytes]:
        """Opens the port that the others connect to; returns its number, and their token."""
        family = socket.AF_INET6 if (both := socket.has_dualstack_ipv6()) else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        return self._server.getsockname()[1], secrets.token_bytes(_TOKEN)

    def _accept(self, token: bytes) -> bool:
        """Accepts the other processes' connections; returns whether all connected."""
        assert self._server is not None
        end = time.monotonic() + _CONNECT_S
        while len(self._peers) < collectives.world_size() - 1:
            self._server.settimeout(max(0.01, end - time.monotonic()))
            try:
                peer, _ = self._server.accept()
            except OSError:
                return False
            peer.settimeout(_GREETING_S)
            with suppress(OSError):  # a stranger who says nothing keeps nobody waiting
                greeting = peer.recv(_TOKEN + _RANK, socket.MSG_WAITALL)
                if greeting[:_TOKEN] == token:
                    self._add(peer, int.from_bytes(greeting[_TOKEN:], "big"))
                    continue
            peer.close()
        return True

    def _connect(self, port: int, token: bytes) -> bool:
        """Connects to the main process; returns whether that worked."""
        try:
            main = socket.create_connection((os.environ.get("MASTER_ADDR", "127.0.0.1"), port), timeout=_CONNECT_S)
            main.sendall(token + collectives.rank().to_bytes(_RANK, "big"))
        except OSError:
            return False
        self._add(main, 0)
        return True

    def _add(self, peer: socket.socket, rank: int) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", _IDLE_S), ("TCP_KEEPINTVL", _INTERVAL_S), ("TCP_KEEPCNT", _PROBES)):
            if hasattr(socket, name):  # systems without have times of their own
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[peer] = rank

    def _watch(self) -> None:
        """Waits until every other process is done, or one is lost."""
        with selectors.DefaultSelector() as selector:
            for peer, rank in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._leaving:
                for key, _ in selector.select(timeout=1.0):
                    word = _last_word(cast("socket.socket", key.fileobj))
                    if word == _DONE:
                        selector.unregister(key.fileobj)
                    elif word.startswith(_STOPPED) and not self._leaving:
                        self._follow(key.data, Interrupted(word[-1] or None))
                        return
                    elif not self._leaving:
                        self._lose(key.data, word.decode(errors="replace"))
                        return

    def _follow(self, rank: int, error: Interrupted) -> None:
        """Stops this process because another one received a signal."""
        if self._on_interrupted:
            self._on_interrupted(error)
        self._lose(rank, str(error), _STOPPED + bytes([error.number or 0]))

    def _lose(self, rank: int, reason: str, word: bytes = b"") -> None:
        """Tells the others that a process is lost, and ends this one if it does not end by itself."""
        text = f"has stopped: {reason}" if reason else "has died, or cannot be reached any more"
        # The main process has said itself why it stops, if it still could; where it could not, the next one speaks.
        speaks = collectives.is_main() or (collectives.rank() == 1 and not reason)
        self._error = LostProcess(f"process {rank} {text}", speaks=speaks, died=not reason)
        self._noticed.set()
        self._say(word or str(self._error).encode())
        threading.Timer(GRACE_S, self._force).start()

    def _force(self) -> None:
        if not self._leaving:
            _end(self._error, continuation())

    def _say(self, word: bytes) -> None:
        for peer in self._peers:
            with suppress(OSError):
                peer.send(word)

    def _close(self) -> None:
        for each in (*self._peers, *filter(None, [self._server])):
            each.close()


def _last_word(peer: socket.socket) -> bytes:
    """Returns a process's message on a readable connection; empty if the connection is closed."""
    try:
        return peer.recv(_MESSAGE)
    except OSError:
        return b""


def _end(error: LostProcess | None, advice: str = "") -> None:
    """Ends the process, even if its main thread is blocked."""
    if error and error.speaks:
        sys.stderr.write(f"error: {error}{advice}\n")
        sys.stderr.flush()
    os._exit(1)


def name_interface() -> None:
    """Sets gloo's network interface to the one that leads to the main process, unless the user has set one.

    By default gloo uses the interface of the machine's host name, which is often the loopback: processes on other
    machines cannot be reached through it.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    import psutil

    with suppress(OSError):  # a name that cannot be resolved is reported when the processes meet
        main = os.environ.get("MASTER_ADDR", "127.0.0.1")
        family, kind, *_, address = socket.getaddrinfo(main, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: it only chooses the way
            own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if own in [each.address.partition("%")[0] for each in addresses]:
                os.environ["GLOO_SOCKET_IFNAME"] = name


@contextmanager
def meeting() -> Iterator[None]:
    """Context that limits how long the processes may take to connect.

    torchrun ends all processes when one dies. Without it, the others would wait for a process that dies early until
    torch.distributed's general timeout.

    Raises:
        RunError: they cannot connect.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    late = LostProcess(f"the {number} processes have not met at {place} within {MEETING_S:.0f} s", speaks=True)
    timer = threading.Timer(MEETING_S, _end, [late])
    timer.daemon = True
    if number > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        timer.start()
    try:
        yield
    except RuntimeError as error:
        if number == 1:
            raise
        raise RunError(f"the processes cannot meet at {place}: {' '.join(str(error).split())}") from error
    finally:
        timer.cancel()
