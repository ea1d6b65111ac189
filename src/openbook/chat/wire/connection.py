"""HTTP to one endpoint: pooled connections, a bounded number of retries, and errors that say what to do.

clients      one for each event loop, for a connection belongs to the loop that opened it. It lives in a generator
             of that loop, which the end of the loop (`asyncio.run`, a Runner) closes
retries      only before the first byte of a reply: where no connection came about or it was closed unanswered, and
             on 429 and 503 where the endpoint says when to come again
hanging up   leaving a stream closes its connection, which is how the endpoint knows that it may stop
secrets      the key is in no error and no repr, even where the endpoint repeats it
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from openbook import __version__
from openbook.chat.wire.events import Events
from openbook.chat.wire.refused import Unanswered, body_of, conceded, error_of
from openbook.chat.wire.reply import DONE, broken, parsed
from openbook.chat.wire.request import Fields, as_json
from openbook.errors import Busy, InputError, MissingExtra, OpenbookError, Overdue, RemoteError

if TYPE_CHECKING:
    import ssl

    import httpx

LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONNECT = 10.0  # seconds until a connection must have come about, or one of the pool be free
LONGEST_WAIT = 30.0  # seconds that an endpoint may ask to wait before a retry; beyond, it is Busy at once
BACKOFF = 0.25  # seconds before the first retry of a connection, twice as many before the next
PATIENCE = 1.0  # seconds for the end of a stream after its last event
LARGEST = 256 * 1024 * 1024  # bytes of a reply that is no stream
LARGEST_ERROR = 64 * 1024
SHOWN = 600  # characters of what an endpoint says about an error
AT_THE_ROOT = ("/tokenize", "/detokenize")  # beside the API's paths, not among them

T = TypeVar("T")


def _library() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise MissingExtra("httpx", "remote", "A remote endpoint") from error
    return httpx


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted: read once, for it takes some 20 ms."""
    return cast("ssl.SSLContext", _library().create_ssl_context())


class Connection:
    """To the endpoint at `url`. `key_from`: where the key comes from, for the error that it is refused."""

    def __init__(
        self, url: str, *, key: str | None, key_from: str, timeout: float, retries: int, connections: int
    ) -> None:
        self._httpx = _library()
        self.base = base_of(url)
        above, _, last = self.base.rpartition("/")
        self._root = above if _is_version(last) else self.base
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            raise InputError(
                f"The key from {key_from} must be printable ASCII without spaces: look for line ends in it."
            )
        if not timeout > 0 or retries < 0 or connections < 1:
            raise InputError(
                "`timeout` must be above 0, `retries` at least 0 and `connections` at least 1: "
                f"got {timeout}, {retries}, {connections}."
            )
        self._key, self._key_from = key, key_from
        self._timeout, self._retries, self._connections = timeout, retries, connections
        self._trust = _trusted()
        self._unwelcome: set[str] = set()  # fields that the endpoint does not take, at least not by their names
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[httpx.AsyncClient, AsyncGenerator[None]]]
        self._clients = WeakKeyDictionary()

    # -- asking ---------------------------------------------------------------------------------------

    async def value(self, path: str, fields: Fields | None, end: float | None = None) -> Any:
        """The JSON that the endpoint answers with. `end`: when, by the loop's clock, it must be there."""
        async with self._opened(path, fields, end) as response:
            return parsed(await self._whole(response, end, LARGEST))

    async def events(self, path: str, fields: Fields, end: float | None) -> AsyncGenerator[str]:
        """The data of the events of a stream, `[DONE]` included; one, and that, where it answers with JSON at once."""
        async with self._opened(path, fields, end) as response:
            kind = response.headers.get("content-type", "")
            if "json" in kind or "html" in kind:
                whole = await self._whole(response, end, LARGEST)
                if "html" in kind:
                    raise broken("its reply", whole)
                yield whole.decode(errors="replace")
                yield DONE
                return
            reader = Events()
            async with aclosing(self._pieces(response, end)) as pieces:
                async for piece in pieces:
                    for data in reader.feed(piece):
                        yield data
                        if data.strip() == DONE:
                            await self._drain(pieces)
                            return
            for data in reader.finish():
                yield data

    async def models(self, end: float | None = None) -> list[str]:
        """Names of what the endpoint serves."""
        listed = await self.value("/models", None, end)
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise broken("the list of models", listed)
        return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def failed(self, found: Unanswered, end: float | None) -> OpenbookError:
        """The error that a reply becomes; that of an unknown model names those that there are."""
        error = error_of(found, self.base, self._clean(found.message), self._key_from if self._key else None)
        if not found.no_model or not isinstance(error, InputError):
            return error
        try:
            known = await self.models(end)
        except OpenbookError:
            return error
        return InputError(f"{error} It has: {self._clean(', '.join(known)) or 'no model'}.")

    async def aclose(self) -> None:
        """Closes the connections of the running event loop."""
        if kept := self._clients.get(asyncio.get_running_loop()):
            await kept[1].aclose()

    # -- one exchange ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self, path: str, fields: Fields | None, end: float | None) -> AsyncIterator[httpx.Response]:
        """A reply that is a success and whose body is not read; leaving it closes it."""
        response = await self._answered(path, fields, end)
        try:
            yield response
        finally:
            await response.aclose()

    async def _answered(self, path: str, fields: Fields | None, end: float | None) -> httpx.Response:
        tries = 0
        while True:
            tries += 1
            sent = None if fields is None else conceded(fields, self._unwelcome)
            try:
                response = await self._send(path, sent, end)
            except (self._httpx.NetworkError, self._httpx.ConnectTimeout, self._httpx.RemoteProtocolError) as error:
                if tries > self._retries:
                    raise self._lost(error) from error
                wait = BACKOFF * 2 ** (tries - 1)
            else:
                if response.is_success:
                    return response
                found = await self._unanswered(response, end)
                if sent is not None and (name := found.unwelcome(sent)):
                    self._unwelcome.add(name)  # once for each field at most
                    tries -= 1
                    continue
                wait = math.inf if found.wait is None or found.status not in (429, 503) else found.wait
                if tries > self._retries or wait > LONGEST_WAIT:
                    raise await self.failed(found, end)
            await self._within(asyncio.sleep(wait), end)

    async def _send(self, path: str, fields: Fields | None, end: float | None) -> httpx.Response:
        headers = {"Accept": "application/json, text/event-stream", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        headers |= {"Content-Type": "application/json"} if fields is not None else {}
        body = None if fields is None else as_json(fields)
        url = (self._root if path in AT_THE_ROOT else self.base) + path
        client = await self._client()
        request = client.build_request("GET" if body is None else "POST", url, content=body, headers=headers)
        try:
            return await self._within(client.send(request, stream=True), end)
        except self._httpx.PoolTimeout as error:
            raise Busy(f"All {self._connections} connections to {self.base} are in use.", 1.0) from error
        except (self._httpx.NetworkError, self._httpx.ConnectTimeout, self._httpx.RemoteProtocolError):
            raise
        except self._httpx.HTTPError as error:
            raise self._lost(error) from error

    async def _unanswered(self, response: httpx.Response, end: float | None) -> Unanswered:
        try:
            raw = await self._whole(response, end, LARGEST_ERROR, cut=True)
        finally:
            await response.aclose()
        said = body_of(raw)
        if 300 <= response.status_code < 400:
            said = f"moved to {response.headers.get('location', 'nowhere')}; give that address"
        return Unanswered.of(response.status_code, said, response.headers)

    async def _whole(
        self, response: httpx.Response, end: float | None, most: int = LARGEST, cut: bool = False
    ) -> bytes:
        """The body: larger than `most` bytes it is an error, or is `cut`."""
        body = bytearray()
        async with aclosing(self._pieces(response, end)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > most:
                    if cut:
                        break
                    raise RemoteError(f"{self.base} answers with more than {most} bytes.")
        return bytes(body[:most])

    async def _pieces(self, response: httpx.Response, end: float | None) -> AsyncGenerator[bytes]:
        """The body as it comes."""
        async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as pieces:
            while True:
                try:
                    piece = await self._within(anext(pieces, None), end)
                except self._httpx.HTTPError as error:
                    raise self._lost(error) from error
                if piece is None:
                    return
                yield piece

    async def _drain(self, pieces: AsyncGenerator[bytes]) -> None:
        """Reads what may follow the last event, so that the connection can be used again."""
        try:
            async with asyncio.timeout(PATIENCE):
                async for _ in pieces:
                    pass
        except (TimeoutError, OpenbookError):
            return

    async def _within(self, work: Awaitable[T], end: float | None) -> T:
        try:
            async with asyncio.timeout_at(end):
                return await work
        except TimeoutError as error:
            raise Overdue(f"{self.base} was not done within the `timeout` of the request.") from error

    async def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if kept := self._clients.get(loop):
            return kept[0]
        soon = min(CONNECT, self._timeout)
        client: httpx.AsyncClient = self._httpx.AsyncClient(
            verify=self._trust,
            headers={"User-Agent": f"openbook/{__version__}"},
            timeout=self._httpx.Timeout(self._timeout, connect=soon, pool=soon),
            trust_env=urlsplit(self.base).hostname not in LOOPBACK,  # what is said to this machine passes no proxy
            limits=self._httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections),
        )

        async def life() -> AsyncGenerator[None]:
            try:
                yield
            finally:
                self._clients.pop(loop, None)
                await client.aclose()

        living = life()
        await anext(living)  # waits for nothing, so that no other task of the loop comes in between
        self._clients[loop] = client, living
        return client

    # -- words ----------------------------------------------------------------------------------------

    def _lost(self, error: Exception) -> RemoteError:
        reason = self._clean(str(error)) or type(error).__name__
        if isinstance(error, self._httpx.ConnectError | self._httpx.ConnectTimeout):
            return RemoteError(f"No connection to {self.base}: {reason}. Is it running, and is this its address?")
        if isinstance(error, self._httpx.ReadTimeout):
            return RemoteError(f"{self.base} said nothing for {self._timeout:g} seconds.")
        return RemoteError(f"The connection to {self.base} broke off: {reason}.")

    def _clean(self, text: str) -> str:
        """What an endpoint said, fit to be shown: without the key, of printable characters, short."""
        text = text.replace(self._key, "(the key)") if self._key else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * SHOWN]).split())
        return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def base_of(url: str) -> str:
    """The address that the API's paths follow: `url`, with /v1 where it has no path."""
    try:
        parts = urlsplit(url.strip())
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        raise InputError("This is no address. Give one such as http://127.0.0.1:8000.") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InputError("An address holds no user, password, query or fragment here: give the key as the key.")
    if not fine or not url.isprintable():
        raise InputError(f"An address begins with http:// or https:// and names a host: got {url!r:.80}.")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _is_version(segment: str) -> bool:
    return segment[:1] == "v" and segment[1:2].isdigit()
