"""A client of bytes, for what well-behaved ones never do; and servers in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHAT = "/v1/chat/completions"
PATIENCE = 60.0  # seconds that anything may take here


def until(there: Callable[[], object], what: str = "") -> None:
    """Waits until something is so."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, what or "it never came to be"
        time.sleep(0.005)


def request(path: str, body: dict[str, Any] | None, method: str = "POST") -> bytes:
    """A request as bytes."""
    said = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said


def asking(stream: bool = True, **more: Any) -> dict[str, Any]:
    """A body that asks the model `tiny`."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "Once"}], "stream": stream, **more}


class Raw:
    """One connection. `buffer`: bytes that the system receives for it unread, as few as it allows."""

    def __init__(self, port: int, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self.heard = b""

    def say(self, data: bytes) -> Raw:
        """Sends bytes."""
        self.socket.sendall(data)
        return self

    def ask(self, **more: Any) -> Raw:
        """Asks for a chat."""
        return self.say(request(CHAT, asking(**more)))

    def until(self, mark: bytes) -> bytes:
        """Reads until `mark` was read; all that was read."""
        while mark not in self.heard:
            part = self.socket.recv(1 << 16)
            assert part, f"it ended before {mark!r}: {self.heard[-500:]!r}"
            self.heard += part
        return self.heard

    def rest(self) -> bytes:
        """Reads to the end."""
        try:
            while part := self.socket.recv(1 << 16):
                self.heard += part
        except ConnectionError:
            pass
        return self.heard

    def leave(self, *, rudely: bool = False) -> None:
        """Closes; `rudely`: with a reset."""
        if rudely:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def free() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does there."""
    try:
        Raw(port).leave()
    except OSError:
        return False
    return True


def ask(port: int, path: str, body: dict[str, Any] | None = None, method: str = "GET") -> tuple[int, Any]:
    """Status and JSON of one request with a connection of its own."""
    raw = Raw(port)
    raw.say(request(path, body, method).replace(b"Host:", b"Connection: close\r\nHost:"))
    head, _, said = raw.rest().partition(b"\r\n\r\n")
    raw.leave()
    return int(head.split()[1]), json.loads(said) if said else None


class Process:
    """`openbook serve`, or what takes its place, in a process: its lines of log as they come, and its signals."""

    def __init__(self, args: list[str], *, stderr: int = subprocess.PIPE) -> None:
        root = Path(__file__).parents[2]
        environ = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen([sys.executable, *args], stderr=stderr, stdout=subprocess.DEVNULL, env=environ)
        self.lines: Queue[str] = Queue()
        self.said = ""
        self.port = 0
        if stderr == subprocess.PIPE:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said += line.decode(errors="replace")
            self.lines.put(line.decode(errors="replace"))

    def event(self, name: str) -> dict[str, Any]:
        """Waits for a line of log."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.lines.get(timeout=0.1)
            except Empty:
                assert self.popen.poll() is None, f"it ended before {name!r}: {self.said}"
                assert time.monotonic() < end, f"{name!r} was never said: {self.said}"
                continue
            if line.startswith("{") and (found := json.loads(line))["event"] == name:
                return dict(found)

    def ready(self) -> Process:
        """Waits until it takes work."""
        self.port = int(self.event("ready")["url"].rpartition(":")[2])
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.popen.send_signal(number)

    def ended(self) -> int:
        """Waits for its end; its status."""
        return self.popen.wait(PATIENCE)


@contextmanager
def process(*args: str, stderr: int = subprocess.PIPE) -> Iterator[Process]:
    """A process for as long as the block runs."""
    made = Process(list(args), stderr=stderr)
    try:
        yield made
    finally:
        made.popen.kill()
        made.popen.wait()


SCRIPT = """
import sys, time
from openbook.chat.scripted import Scripted
from openbook.errors import ConfigError
from openbook.serve.run import serve
from openbook.serve.served import Served
from openbook.serve.settings import Settings

pace, pieces, port, loads, stall = (float(word) for word in sys.argv[1:])

def load():
    time.sleep(loads)
    script = Scripted(*[[f"{n} " for n in range(int(pieces))]] * 100000, pace=pace)
    return [Served(name="tiny", endpoint=script)]

serve(load, Settings(port=int(port), stall=stall))
"""


def scripted(
    *,
    pace: float = 0.02,
    pieces: int = 20,
    port: int = 0,
    loads: float = 0.0,
    stall: float = 30.0,
    stderr: int = subprocess.PIPE,
) -> AbstractContextManager[Process]:
    """A process that serves a script under the name `tiny`, without torch, and so at once."""
    return process("-c", SCRIPT, *map(str, (pace, pieces, port, loads, stall)), stderr=stderr)
