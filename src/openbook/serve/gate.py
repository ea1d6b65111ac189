"""Who may come in. With a file of keys every route asks for one; without, only this machine is listened to at all.

A key is `Authorization: Bearer KEY`; a browser's WebSocket, which cannot set headers, offers it as a subprotocol
`openai-insecure-api-key.KEY`. The file holds hashes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import Headers

from openbook.serve.errors import Rejected
from openbook.serve.settings import LOOPBACK, Settings

Access = Literal["user", "admin", "health"]
BEARER = "openai-insecure-api-key."


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `name` keeps its prefixes apart from those of others, and is what logs and metrics say."""

    name: str = ""
    admin: bool = False


class Gate:
    """Decides about every request before anything of it is read."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def admit(self, headers: Headers, access: Access) -> Caller:
        """Who it is; `Rejected` for who may not."""
        self._check_host(headers)
        return Caller(name="", admin=access != "health")

    def _check_host(self, headers: Headers) -> None:
        """A page elsewhere that has its own name point at this machine (DNS rebinding) says that name."""
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        allowed = {self.settings.host, *self.settings.hosts, *LOOPBACK, "[::1]"}
        if name.lower() not in allowed:
            raise Rejected(421, f"This server does not answer to the host {host!r:.100}.", code="wrong_host")
