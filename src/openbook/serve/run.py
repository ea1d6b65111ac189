"""One process that serves: it listens at once, is ready when its models are, drains when asked to end, then ends.

first SIGTERM or Ctrl-C    new work is refused (503), what runs is finished, then the process ends (status 0)
second                     what runs is stopped, with an error that says so
SIGHUP                     the file of keys is read again
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from openbook.errors import OpenbookError
from openbook.serve.app import make_app
from openbook.serve.collector import calm
from openbook.serve.connection import Connection
from openbook.serve.logs import Handler
from openbook.serve.served import Load, Served
from openbook.serve.server import Server
from openbook.serve.settings import Settings

SPARE = 128  # files that are open beside connections
GRACE = 5  # seconds that connections are given once nothing runs any more


class Listener(uvicorn.Server):
    """uvicorn, which ends when the server has drained."""

    def __init__(self, app: Starlette, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=partial(Connection, settings),  # type: ignore[arg-type]  # called as the class would be
                ws="websockets-sansio",
                ws_max_size=settings.body,
                ws_per_message_deflate=False,  # a small message cannot become a large one, and tokens are short
                loop="uvloop",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=GRACE,
                backlog=4096,
            )
        )
        self.server: Server = app.state.server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """From here on it listens."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread() and self.server.settings.api_keys is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self.server.gate.reload)
        await super().startup(sockets)
        for listening in self.servers[0].sockets:
            _forget_the_dead(listening, 2 * self.server.settings.stall + 1)  # a stalled reader is ours to drop, before
        self.up.set()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal: uvicorn's own way is to close what is open."""
        self.end()

    def end(self) -> None:
        """Drains, then ends; the second time it stops what runs. From any thread."""
        if self._loop is None:
            self.should_exit = True
            return
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drained())
        else:
            self.server.stop()

    async def _drained(self) -> None:
        self.server.log.say("draining", running=len(self.server.board))
        whole = await self.server.drain()
        self.server.log.say("drained", whole=whole)
        self.should_exit = True


def _forget_the_dead(listening: socket.socket, seconds: float) -> None:
    """Connections taken here end when what was sent is not received for so long, or nobody is there any more.

    A reply that is over, or was dropped, is still in the system's hands: without this, for as long as it likes. Twice
    as long as a reader is given, so that one who stalls is seen to stall, and not to have gone.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(2000 * seconds))


def serve(load: Callable[[], Sequence[Served]], settings: Settings, swap: Load | None = None) -> None:
    """Listens, loads the models, serves until a signal ends it. What cannot be loaded ends it with its error.

    `swap` loads what takes the place of a model while the server runs.
    """
    settings = _fitted(settings)
    listener = Listener(make_app((), settings, ready=False), settings)
    logging.getLogger().addHandler(Handler(listener.server.log))
    listener.server.load = swap
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for one in load():
                listener.server.models.add(one)
        except BaseException as error:
            failed.append(error)
            listener.up.wait()
            listener.should_exit = True
        else:
            calm()
            listener.up.wait()
            listener.server.become_ready(f"http://{settings.host}:{listener.port}")

    loading = threading.Thread(target=work, name="openbook-load", daemon=True)
    _check_free(settings)
    loading.start()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again that it caught
        listener.run()
    if failed:
        raise failed[0]


def _fitted(settings: Settings) -> Settings:
    """With no more connections than there are files that this process may open: beyond, nobody would be told."""
    room = max(1, raise_limits() - SPARE)
    return settings if settings.connections <= room else replace(settings, connections=room)


def _check_free(settings: Settings) -> None:
    """uvicorn ends the process where an address is taken; here that is an error like any other."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        raise OpenbookError(
            f"Cannot listen at {settings.host}:{settings.port}: {error.strerror or error}. Is another server there? "
            "Give another --port."
        ) from error


@contextlib.contextmanager
def background(served: Sequence[Served], settings: Settings | None = None) -> Iterator[Listener]:
    """A server in a thread of this process, for as long as the block runs; its port is `listener.port`."""
    settings = settings or Settings(port=0)
    listener = Listener(make_app(served, settings), settings)
    thread = threading.Thread(target=listener.run, name="openbook-serve", daemon=True)
    thread.start()
    listener.up.wait(30)
    try:
        yield listener
    finally:
        listener.end()
        thread.join(30)


def raise_limits() -> int:
    """Lets this process hold as many connections as the system allows; the number of files it may have open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
