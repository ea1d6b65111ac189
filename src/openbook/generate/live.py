"""An engine at work in a thread of its own: async streams of tokens, submitted and cancelled from anywhere.

The engine belongs to the thread. What others want of it (a request, a cancel, new weights) is a call that runs between
two steps; what the engine has to say comes back through the caller's event loop. Closing a stream cancels its request
before the next step. A reader who falls behind holds its request, and nobody else's.

A step that fails ends the requests that were in it, and the thread goes on. After several in a row the engine is asked
for one token. If it cannot write it, it is broken: everything ends with the cause, and nothing more is taken. If it
can, it was the requests: somebody who asks again and again for what cannot be done stops nobody else.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from openbook import log
from openbook.errors import InputError, OpenbookError, Stopped
from openbook.generate.engine import Engine
from openbook.generate.failing import cause_of, tell
from openbook.generate.job import Job
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.generate.scheduler import Full

T = TypeVar("T")
IDLE = 0.25  # seconds between looks at deadlines while nothing runs
AHEAD = 256  # tokens that wait for their reader before its request is held; it goes on when half of them are read
FAILURES = 3  # steps that fail in a row, and the engine has to show that it works
PROOF = 100  # steps that this may take


class Live:
    """Runs `engine`; the thread starts with the first call and ends with `close`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._posts: dict[asyncio.AbstractEventLoop, _Post] = {}
        self._failures = 0  # of steps, since one succeeded
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
                raise Stopped(self.ended)
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
        reader = _Reader(self)
        submit = partial(
            self.engine.submit,
            prompt,
            sampling,
            adapter=adapter,
            tenant=tenant,
            priority=priority,
            timeout=timeout,
            listener=reader.hear,
        )

        def begin() -> tuple[Job, bool]:
            begun = reader.job = submit()
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
                token = await reader.next()
                ends += token.finish is not None
                yield job, token
        finally:
            reader.left = True
            if not job.ended:
                with suppress(OpenbookError):  # it is closed: everything ends anyway
                    self.call(partial(self.engine.cancel, job))

    def post(self, loop: asyncio.AbstractEventLoop) -> _Post:
        """The way to those who read in `loop`, which runs."""
        if loop not in self._posts:
            self._posts = {one: post for one, post in self._posts.items() if not one.is_closed()}
            self._posts[loop] = _Post(loop)
        return self._posts[loop]

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
        if self._broken is None:
            return "The engine is closed."
        return f"The engine has stopped for good ({cause_of(self._broken)})."

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
        except BaseException as error:  # an interrupt; what a step raises does not come here
            self._broken = error
            log.caution(self.ended)
        finally:
            with self._wake:  # from here on nobody hands anything in; what was handed in is answered, then ended
                self._closed = True
            self._answer()
            self._end()

    def _turn(self) -> bool:
        """Calls that wait, then a step; sleeps while there is neither. False: it is closed, or broken."""
        with self._wake:
            nothing = self.engine.idle or self.engine.still
            if nothing and not self._calls and not self._closed:
                self._wake.wait(IDLE)
            closed = self._closed
        self._answer()
        if closed:
            return False
        if not self.engine.idle:
            try:
                events = self.engine.step()
            except Exception as error:
                log.caution("".join(traceback.format_exception(error)).rstrip(), once=f"step {cause_of(error)}")
                return self._survived()
            if events and all(token.finish == "error" for token in events):
                return self._survived()
            if not self.engine.still:
                self._failures = 0
        return True

    def _answer(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _survived(self) -> bool:
        """A step has failed, or all that were in it have: whether there is another one."""
        self._failures += 1
        if self._failures < FAILURES:
            return True
        self._failures = 0
        self._broken = self._fault()
        if self._broken is not None:
            log.caution(f"{FAILURES} steps in a row have failed. {self.ended}")
        return self._broken is None

    def _fault(self) -> BaseException | None:
        """Why the engine cannot write one token while all else is held; None: it can, or is too full to be asked."""
        engine, held = self.engine, []
        for job in engine.jobs.values():
            held += [sequence for sequence in job.sequences.values() if not sequence.paused]
        for sequence in held:
            engine.scheduler.pause(sequence)
        try:
            proof = engine.submit([0], Sampling(max_tokens=1, temperature=0.0))
            try:
                for _ in range(PROOF):
                    if not proof.ended:
                        engine.step()
            finally:
                engine.cancel(proof)
            error = proof.generations[0].error
        except (Full, InputError):
            return None
        except Exception as raised:
            return raised
        finally:
            for sequence in held:
                engine.scheduler.resume(sequence)
        return None if error is None else OpenbookError(error)

    def _end(self) -> None:
        """Ends what runs, whatever state the engine is in."""
        why = None if self._broken is None else self.ended
        for job in list(self.engine.jobs.values()):
            try:
                self.engine.cancel(job, why)
            except Exception:  # its books are in disorder, and who listens hears of an end nevertheless
                tell(self.engine, [job.end(line, "error", self.ended) for line in job.lines if not line.done])


class _Post:
    """Tokens on their way from the engine's thread to one event loop, which is woken once for all that are there.

    A step has a token for every request, and to wake a loop costs more than to hand one over. The mark is taken off
    before anything is handed over: a token that comes later either finds it gone, or is handed over with the rest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Queue[Token], Token]] = deque()
        self._woken = False

    def send(self, queue: asyncio.Queue[Token], token: Token) -> None:
        """From the engine's thread. RuntimeError where the loop has ended, and nobody would ever read it."""
        self._waiting.append((queue, token))
        if self._loop.is_closed() or not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        for _ in range(len(self._waiting)):  # not as long as there are any: others want the loop too
            queue, token = self._waiting.popleft()
            queue.put_nowait(token)


class _Reader:
    """Tokens of one request between the engine's thread, which is in `hear`, and one that reads, in `next`.

    When `AHEAD` wait the engine is asked to hold the request; the reader asks it to go on. `held` is the engine's own:
    it is set before the token that was one too many is on its way, so the reader sees it.
    """

    def __init__(self, live: Live) -> None:
        self.job: Job | None = None  # once it was begun, and so before the first token
        self.held = False
        self.left = False  # nobody reads any more
        self._live = live
        self._post = live.post(asyncio.get_running_loop())
        self._queue: asyncio.Queue[Token] = asyncio.Queue()
        self._heard = self._read = 0
        self._asked = False  # to go on

    def hear(self, token: Token) -> None:
        """One more. Raises where the reader's loop has ended, and nobody would ever read it."""
        if self.left:
            return
        self._heard += 1
        if not self.held and self._heard - self._read > AHEAD:
            self._hold(True)
        self._post.send(self._queue, token)

    async def next(self) -> Token:
        """The next one."""
        token = await self._queue.get()
        self._read += 1
        if self.held and not self._asked and self._heard - self._read <= AHEAD // 2:
            self._asked = True
            with suppress(OpenbookError):  # it is closed: everything ends anyway
                self._live.call(self._go_on)
        return token

    def _go_on(self) -> None:
        self._hold(False)
        self._asked = False

    def _hold(self, held: bool) -> None:
        """In the engine's thread. Beams speak at their end alone, and are nowhere among the sequences of a request."""
        self.held = held
        scheduler = self._live.engine.scheduler
        if self.job is not None:
            for sequence in self.job.sequences.values():
                (scheduler.pause if held else scheduler.resume)(sequence)
