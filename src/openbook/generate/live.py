"""An engine at work in a thread of its own: async streams of tokens, submitted and cancelled from anywhere.

The engine belongs to the thread. What others want of it (a request, a cancel, new weights) is a call that runs between
two steps; what the engine has to say comes back through the caller's event loop. Closing a stream cancels its request.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from openbook.errors import OpenbookError
from openbook.generate.engine import Engine
from openbook.generate.job import Job
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling

T = TypeVar("T")
IDLE = 0.25  # seconds between looks at deadlines while nothing runs


class Live:
    """Runs `engine`; the thread starts with the first call and ends with `close`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._broken: BaseException | None = None
        self._process = os.getpid()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` in the engine's thread, between two steps."""
        if os.getpid() != self._process:  # its thread stayed behind, and so may whoever held the lock
            raise OpenbookError("This engine belongs to the process that this one was forked from: make another here.")
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        with self._wake:
            if self._closed or self._broken is not None:
                raise OpenbookError(self.ended)
            self._calls.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="openbook-engine", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    async def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        adapter: str | None = None,
        tenant: str = "",
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[tuple[Job, Token]]:
        """The tokens of one request as they come, each with its request. Its errors come at the first one."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Token] = asyncio.Queue()

        def heard(token: Token) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, token)

        submit = partial(
            self.engine.submit,
            prompt,
            sampling,
            adapter=adapter,
            tenant=tenant,
            priority=priority,
            timeout=timeout,
            listener=heard,
        )

        def begin() -> tuple[Job, bool]:
            begun = submit()
            return begun, begun.ended  # as it is now: a moment later its tokens may all be on their way

        begun = self.call(begin)
        try:
            job, nothing = await asyncio.wrap_future(begun)
        except asyncio.CancelledError:  # it may be on its way already, and nobody would ever ask for its tokens
            begun.add_done_callback(self._abandon)
            raise
        ends = sampling.n if nothing else 0
        try:
            while ends < sampling.n:
                token = await queue.get()
                ends += token.finish is not None
                yield job, token
        finally:
            if not job.ended and not self._closed and self._broken is None:
                self.call(partial(self.engine.cancel, job))

    def _abandon(self, begun: Future[tuple[Job, bool]]) -> None:
        """Cancels a request that was begun for somebody who has gone."""
        if not begun.cancelled() and begun.exception() is None:
            with suppress(OpenbookError):  # it is closed: everything ends anyway
                self.call(partial(self.engine.cancel, begun.result()[0]))

    @property
    def works(self) -> bool:
        """Whether requests are taken."""
        return not self._closed and self._broken is None

    @property
    def ended(self) -> str:
        """Why nothing more is taken."""
        return f"The engine is closed{f' ({self._broken})' if self._broken else ''}."

    def close(self) -> None:
        """Ends what runs and the thread."""
        if os.getpid() != self._process:
            return
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._broken = error
            raise
        finally:
            with self._wake:  # from here on nobody hands anything in; what was handed in is answered, then ended
                self._closed = True
                calls = list(self._calls)
                self._calls.clear()
            for call in calls:
                call()
            for job in list(self.engine.jobs.values()):
                self.engine.cancel(job)

    def _turn(self) -> bool:
        """Calls that wait, then a step; sleeps while there is neither. False: it is closed."""
        with self._wake:
            if not self._calls and not self._closed and self.engine.idle:
                self._wake.wait(IDLE)
            calls = list(self._calls)
            self._calls.clear()
            if self._closed:
                for call in calls:
                    call()
                return False
        for call in calls:
            call()
        if not self.engine.idle:
            self.engine.step()
        return True
