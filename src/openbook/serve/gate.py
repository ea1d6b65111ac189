"""Who may come in. With a file of keys every route asks for one; without, only this machine is listened to at all.

A key is `Authorization: Bearer KEY`; a browser's WebSocket, which cannot set headers, offers it as a subprotocol
`openai-insecure-api-key.KEY`. The file holds hashes alone (keys.py); how much each key may is in limits.py.

Two things keep the pages of other sites out, which a browser on this machine would open the door for: what a request
calls this server (Host; a name of theirs that leads here is not ours), and which page it comes from (Origin).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from starlette.datastructures import Headers

from openbook.errors import OpenbookError
from openbook.serve.errors import Rejected
from openbook.serve.keys import Key, KeyFile
from openbook.serve.limits import Limits
from openbook.serve.logs import Log
from openbook.serve.settings import LOOPBACK, Settings

Access = Literal["user", "admin", "health"]
BEARER = "openai-insecure-api-key."
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::\d{0,5})?")
LOOKS = 1.0  # seconds between looks at the file of keys


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `name` keeps its prefixes apart from those of others, and is what logs say."""

    name: str = ""
    admin: bool = False
    key: Key | None = None

    def may(self, model: str) -> bool:
        """Whether it may use a model."""
        return self.key is None or self.key.models is None or model in self.key.models


class Gate:
    """Decides about every request before anything of it is read."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.limits = Limits()
        self._log = log
        self._file = None if settings.api_keys is None else KeyFile(settings.api_keys)
        self._names = {*LOOPBACK, "[::1]", *(name.lower() for name in (settings.host, *settings.hosts))}
        self._origins = {origin.lower() for origin in settings.origins}
        if self._file is not None and self._file.open:
            log.say("keys", warning=f"'{self._file.path}' can be read by every user of this machine: chmod 600 it.")

    # -- who ----------------------------------------------------------------------------------------------------------

    def admit(self, headers: Headers, access: Access, *, websocket: bool = False) -> Caller:
        """Who it is; `Rejected` for who may not."""
        self._check_host(headers)
        self._check_origin(headers)
        if self._file is None:
            return Caller(admin=True)
        said = _said(headers, websocket)
        if access == "health" and self.settings.open_health and not said:
            return Caller()
        key = self._file.keys.find(said) if said else None
        if key is None:
            raise Rejected(
                401,
                "This key is not known here." if said else "This server asks for a key: Authorization: Bearer KEY.",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if access == "admin" and not key.admin:
            raise Rejected(403, "This is for keys that are admin.", code="not_admin")
        return Caller(name=key.name, admin=key.admin, key=key)

    def _check_host(self, headers: Headers) -> None:
        """A page elsewhere that has its own name point at this machine (DNS rebinding) says that name. An address is
        no name: where there are keys, and other machines may come, any will do."""
        said = headers.getlist("host")
        found = HOST.fullmatch(said[0]) if len(said) == 1 else None
        name = "" if found is None else found["name"].lower()
        if name in self._names or (self._file is not None and _is_address(name)):
            return
        shown = ", ".join(said) or "none"
        raise Rejected(
            421, f"This server does not answer to the host {shown!r:.100}. --allow-host NAME lets it.",
            code="wrong_host",
        )  # fmt: skip

    def _check_origin(self, headers: Headers) -> None:
        """Only browsers say where a page is from. Ours, and those that the settings name, may ask."""
        origins = headers.getlist("origin")
        for origin in origins:
            _, _, place = origin.partition("://")
            ours = place.lower() == headers.get("host", "").lower() and len(origins) == 1
            if not (ours or origin.lower() in self._origins or "*" in self._origins):
                raise Rejected(
                    403, f"Pages of {origin!r:.100} may not use this server. --allow-origin ORIGIN lets them.",
                    code="wrong_origin",
                )  # fmt: skip

    # -- how much -----------------------------------------------------------------------------------------------------

    def count(self, caller: Caller) -> dict[str, str]:
        """A request more of this caller: headers that say what is left to it; 429 where nothing is."""
        return {} if caller.key is None else self.limits.take(caller.key)

    def charge(self, caller: Caller, tokens: float) -> None:
        """What a request has used."""
        if caller.key is not None:
            self.limits.charge(caller.key, tokens)

    @contextmanager
    def entered(self, caller: Caller) -> Iterator[None]:
        """Is at work while the block runs."""
        if caller.key is None:
            yield
            return
        with self.limits.entered(caller.key):
            yield

    def check(self, caller: Caller, path: dict[str, str], request: msgspec.Struct | None) -> None:
        """Whether this caller may ask for that: its model, its priority. A model that it may not use is not there."""
        key = caller.key
        if key is None:
            return
        asked: dict[str, Any] = {} if request is None else msgspec.structs.asdict(request)
        if (priority := asked.get("priority")) is not None and priority > key.priority:
            raise Rejected(
                403, f"`priority` may be {key.priority} at most with this key: got {priority}.",
                code="priority_too_high", param="priority",
            )  # fmt: skip
        for place in (path, asked):
            if key.models is None or "model" not in place or place["model"] in key.models:
                continue
            raise Rejected(
                404, f"There is no model {place['model']!r:.300} for this key. There are: {', '.join(key.models)}.",
                code="model_not_found", param="model",
            )  # fmt: skip

    # -- the file -----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Reads the keys again (SIGHUP). Where that fails the old ones stay, and the log says so."""
        if self._file is None:
            return
        try:
            self._file.reload()
        except OpenbookError as error:
            self._log.say("keys", error=f"The keys stay as they were: {error}", keys=len(self._file.keys))
        else:
            self._log.say("keys", keys=len(self._file.keys), path=str(self._file.path))

    async def watch(self) -> None:
        """For as long as the server runs: a file that has changed is read."""
        while self._file is not None:
            await asyncio.sleep(LOOKS)
            if self._file.changed:
                self.reload()


def _said(headers: Headers, websocket: bool) -> str:
    """The key that a caller says, if any."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    if websocket:
        for offered in headers.get("sec-websocket-protocol", "").split(","):
            if offered.strip().startswith(BEARER):
                return offered.strip().removeprefix(BEARER)
    return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
