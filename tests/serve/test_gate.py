"""Who may come in: every route, with no key, a wrong one, a user's, an admin's; hosts, origins, the file of keys."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers

from openbook.chat import Scripted
from openbook.cli import main
from openbook.errors import ConfigError
from openbook.serve.app import make_app
from openbook.serve.errors import Rejected
from openbook.serve.gate import BEARER, Gate
from openbook.serve.keys import new_key, parse_keys
from openbook.serve.served import Served
from openbook.serve.settings import Settings

ALICE, BOB, ROOT = (new_key() for _ in range(3))
FILE = f"""
[keys.alice]
hash = "{ALICE[1]}"
[keys.bob]
hash = "{BOB[1]}"
priority = 5
models = ["other"]
[keys.root]
hash = "{ROOT[1]}"
admin = true
"""
BEARERS = {"authorization": f"Bearer {ALICE[0]}"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def made(settings: Settings, *replies: Any, pace: float = 0.0) -> Starlette:
    app = make_app(
        [Served(name=name, endpoint=Scripted(*replies or ["Hello."] * 99, pace=pace)) for name in ("tiny", "other")],
        settings,
    )
    app.state.server.become_ready()
    return app


@asynccontextmanager
async def client(app: Starlette, key: str | None = None, host: str = "localhost:8000") -> AsyncIterator[Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as made:
        yield made


async def status_of(app: Starlette, method: str, path: str, key: str | None, **more: Any) -> int:
    async with client(app, key) as http:
        return (await http.request(method, path, **more)).status_code


async def socket_of(app: Starlette, path: str, headers: Mapping[str, str]) -> list[str]:
    """What a WebSocket's opening is answered with."""
    sent: list[str] = []
    events = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}]

    async def receive() -> Any:
        return events.pop(0) if events else await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {
        "type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "scheme": "ws", "subprotocols": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "extensions": {},
        "headers": [(b"host", b"localhost:8000"), *((n.encode(), v.encode()) for n, v in headers.items())],
    }  # fmt: skip
    async with asyncio.timeout(5):
        await app(scope, receive, send)
    return sent


# ------------------------------------------------------------------------------------------------ every route


async def leaks(app: Starlette) -> list[str]:
    """Everything that lets somebody in who may not come in, or keeps somebody out who may."""
    found: list[str] = []
    server = app.state.server
    paths = {(route.method, route.path, route.access): route for route in server.routes}
    asked = [(method, path, access) for method, path, access in paths] + [
        *((method, "/v1/models", "user") for method in ("OPTIONS", "HEAD", "PUT", "PATCH", "TRACE")),
        *((method, "/nowhere", "user") for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE")),
        *(("GET", path, "user") for path in ("/", "//v1/models", "/v1/models/", "/V1/models", "/v1/../v1/models")),
    ]
    for method, path, access in asked:
        real = path.replace("{", "").replace("}", "")
        for key in (None, "", "wrong", ALICE[1], ALICE[0] + "x", ALICE[0][:-1], f"{ALICE[0]} {ALICE[0]}"):
            status = await status_of(app, method, real, key)
            if status != 401:
                found.append(f"{method} {path} with the key {key!r} is {status}")
        for key in (ALICE[0], ROOT[0]):
            status = await status_of(app, method, real, key)
            barred = access == "admin" and key == ALICE[0]
            if (status == 403) != barred or status == 401 or status >= 500:
                found.append(f"{method} {path} with a key of {'a user' if key == ALICE[0] else 'an admin'} is {status}")
    for path in {path for _, path, _ in asked}:
        for headers in ({}, {"sec-websocket-protocol": f"{BEARER}wrong"}, {"origin": "https://evil.example"} | BEARERS):
            if "websocket.accept" in await socket_of(app, path, headers):
                found.append(f"a WebSocket at {path} opens with the headers {headers}")
    for headers in (BEARERS, {"sec-websocket-protocol": BEARER + ALICE[0]}):
        if "websocket.accept" not in await socket_of(app, "/v1/chat/completions", headers):
            found.append("a WebSocket with a key does not open")
    return found


def test_every_route_asks_for_a_key(file: Path) -> None:
    assert asyncio.run(leaks(made(Settings(api_keys=file)))) == []


FAULTS: dict[str, Callable[[Gate, Headers, Any], bool]] = {
    "health answers everybody": lambda _, __, access: access == "health",
    "any key will do": lambda _, headers, __: "authorization" in headers,
    "a hash is as good as a key": lambda _, headers, __: headers.get("authorization", "").endswith(ALICE[1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_walk_finds_a_gate_that_leaks(file: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    app, real = made(Settings(api_keys=file)), Gate.admit

    def admit(gate: Gate, headers: Headers, access: Any, **more: Any) -> Any:
        try:
            return real(gate, headers, access, **more)
        except Rejected:
            if FAULTS[fault](gate, headers, access):
                return real(gate, Headers({"host": "localhost", "authorization": f"Bearer {ROOT[0]}"}), access)
            raise

    monkeypatch.setattr(Gate, "admit", admit)
    assert asyncio.run(leaks(app))


def test_what_is_not_there_is_told_to_those_who_may_come_in(file: Path) -> None:
    app = made(Settings(api_keys=file))
    assert asyncio.run(status_of(app, "GET", "/nowhere", ALICE[0])) == 404
    assert asyncio.run(status_of(app, "PUT", "/v1/models", ALICE[0])) == 405


def test_health_can_be_open(file: Path) -> None:
    app = made(Settings(api_keys=file, open_health=True))
    assert asyncio.run(status_of(app, "GET", "/health/ready", None)) == 200
    assert asyncio.run(status_of(app, "GET", "/health/ready", "wrong")) == 401
    assert asyncio.run(status_of(app, "GET", "/metrics", None)) == 401


def test_a_key_is_read_from_a_subprotocol_by_websockets_alone(file: Path) -> None:
    gate = made(Settings(api_keys=file)).state.server.gate
    offered = Headers({"host": "localhost", "sec-websocket-protocol": f"realtime, openai-insecure-api-key.{BOB[0]}"})
    assert gate.admit(offered, "user", websocket=True).name == "bob"
    with pytest.raises(Rejected, match="asks for a key"):
        gate.admit(offered, "user")


# ------------------------------------------------------------------------------------------------ others' requests


def test_a_request_is_its_callers_own(file: Path) -> None:
    """Others neither see it nor stop it, nor learn whether it is there; an admin does all three."""

    async def story() -> None:
        app = made(Settings(api_keys=file), ["a"] * 1000, pace=0.01)
        async with client(app, ALICE[0]) as alice, client(app, BOB[0]) as bob, client(app, ROOT[0]) as root:
            work = asyncio.ensure_future(
                alice.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "secret-1"})
            )
            while "secret-1" not in app.state.server.board.by_id:
                await asyncio.sleep(0.01)
            assert (await bob.get("/v1/requests")).json()["data"] == []
            there = await bob.post("/v1/requests/secret-1/cancel")
            nowhere = await bob.post("/v1/requests/secret-2/cancel")
            assert (there.status_code, nowhere.status_code) == (404, 404)
            assert there.text.replace("secret-1", "secret-2") == nowhere.text
            assert [one["id"] for one in (await alice.get("/v1/requests")).json()["data"]] == ["secret-1"]
            assert [one["caller"] for one in (await root.get("/v1/requests")).json()["data"]] == ["alice"]
            assert (await root.post("/v1/requests/secret-1/cancel")).status_code == 200
            assert (await work).status_code == 499

    asyncio.run(story())


def test_what_is_kept_is_its_callers_own(file: Path) -> None:
    async def story() -> None:
        app = made(Settings(api_keys=file))
        async with client(app, ALICE[0]) as alice, client(app, BOB[0]) as bob:
            kept = (await alice.post("/v1/responses", json={"model": "tiny", "input": "Hi", "store": True})).json()
            for path in (f"/v1/responses/{kept['id']}", f"/v1/responses/{kept['id']}/input_items"):
                assert (await alice.get(path)).status_code == 200
                assert (await bob.get(path)).status_code == 404
            assert (await bob.delete(f"/v1/responses/{kept['id']}")).status_code == 404
            follow = {"model": "other", "input": "And?", "previous_response_id": kept["id"]}
            assert (await bob.post("/v1/responses", json=follow)).status_code == 404
            assert (await alice.post("/v1/responses", json=follow)).status_code == 200

    asyncio.run(story())


def test_a_key_says_which_models_there_are(file: Path) -> None:
    async def story() -> None:
        app = made(Settings(api_keys=file))
        async with client(app, BOB[0]) as bob, client(app, ALICE[0]) as alice:
            assert [one["id"] for one in (await bob.get("/v1/models")).json()["data"]] == ["other"]
            assert len((await alice.get("/v1/models")).json()["data"]) == 2
            assert (await bob.get("/v1/models/tiny")).status_code == 404
            assert (await bob.get("/v1/models/other")).status_code == 200
            assert (await bob.post("/v1/chat/completions", json=CHAT | {"model": "other"})).status_code == 200
            there = await bob.post("/v1/chat/completions", json=CHAT)
            nowhere = await bob.post("/v1/chat/completions", json=CHAT | {"model": "nope"})
            assert (there.status_code, there.text.replace("tiny", "nope")) == (404, nowhere.text)

    asyncio.run(story())


def test_no_route_forgets_which_models_a_key_may_use(file: Path) -> None:
    """Whatever names a model is refused at the door, before its handler could forget to ask."""

    async def story() -> None:
        app = made(Settings(api_keys=file))
        gate = app.state.server.gate
        bob = gate.admit(Headers({"host": "localhost", "authorization": f"Bearer {BOB[0]}"}), "user")
        named = [route.request for route in app.state.server.routes if route.request is not None]
        named = [kind for kind in named if "model" in kind.__struct_fields__]
        assert len(named) >= 5
        for kind in named:
            request = kind(**{field: "tiny" if field == "model" else None for field in kind.__struct_fields__})
            with pytest.raises(Rejected, match="There is no model 'tiny' for this key"):
                gate.check(bob, {}, request)

    asyncio.run(story())


def test_priority_is_refused_above_what_the_key_may_ask_for(file: Path) -> None:
    async def story() -> None:
        app = made(Settings(api_keys=file))
        async with client(app, BOB[0]) as bob, client(app, ALICE[0]) as alice:
            body = CHAT | {"model": "other"}
            for http, priority, status in ((bob, 5, 200), (bob, 6, 403), (alice, 1, 403), (alice, -3, 200)):
                reply = await http.post("/v1/chat/completions", json=body | {"priority": priority})
                assert reply.status_code == status, (priority, reply.text)
            assert reply.json()["choices"]
            error = (await bob.post("/v1/chat/completions", json=body | {"priority": 6})).json()["error"]
            assert error["param"] == "priority"

    asyncio.run(story())
    assert asyncio.run(status_of(made(Settings()), "POST", "/v1/chat/completions", None, json=CHAT | {"priority": 9}))


# ------------------------------------------------------------------------------------------------ hosts and origins


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "example.com", "192.168.1.5", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "unix:/x", "127.0.0.1.x"],
)
def test_without_keys_only_this_machine_is_listened_to(host: str) -> None:
    with pytest.raises(ConfigError, match="Without keys"):
        Settings(host=host)


def admitted(settings: Settings, *headers: tuple[str, str]) -> bool:
    gate = Gate(settings, made(Settings()).state.server.log)
    try:
        gate.admit(Headers(raw=[(name.encode(), value.encode()) for name, value in headers]), "user")
    except Rejected:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("[::1]", True),
        ("mine.example:1", True), ("", False), ("evil.example", False), ("localhost.evil.example", False),
        ("localhost:8000@evil.example", False), ("localhost:x", False), ("[::1", False), ("[::1].evil.example", False),
        ("::1", False), ("localhost/", False), ("[::2]", False), ("192.168.0.1", False), ("local host", False),
        ("localhost:80:80", False), ("localhost#", False),
    ],
)  # fmt: skip
def test_hosts(host: str, good: bool) -> None:
    assert admitted(Settings(hosts=("Mine.example",)), ("host", host)) is good


def test_a_host_is_said_once() -> None:
    assert not admitted(Settings())
    assert not admitted(Settings(), ("host", "localhost"), ("host", "localhost"))


def test_with_keys_an_address_is_no_name_of_somebody_else(file: Path) -> None:
    gate = Gate(Settings(host="0.0.0.0", api_keys=file), made(Settings()).state.server.log)
    for host, good in (("10.0.0.7:8000", True), ("[2001:db8::7]:80", True), ("evil.example", False)):
        headers = Headers({"host": host, "authorization": f"Bearer {ALICE[0]}"})
        if good:
            gate.admit(headers, "user")
        else:
            with pytest.raises(Rejected, match="does not answer"):
                gate.admit(headers, "user")


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("http://localhost:8000", True), ("https://app.example", True), ("HTTPS://APP.example", True), ("null", False),
        ("http://localhost:9000", False), ("https://app.example.evil", False), ("https://evil.example", False),
        ("", False), ("localhost:8000", False), ("http://app.example", False),
    ],
)  # fmt: skip
def test_origins(origin: str, good: bool) -> None:
    settings = Settings(origins=("https://app.example",))
    assert admitted(settings, ("host", "localhost:8000"), ("origin", origin)) is good


def test_pages_of_others_stop_nothing() -> None:
    """A POST without a body needs no preflight: a page could send it blindly."""
    app = made(Settings())
    evil = {"Origin": "https://evil.example"}
    for path in ("/v1/requests/x/cancel", "/v1/chat/completions"):
        assert asyncio.run(status_of(app, "POST", path, None, headers=evil)) == 403
    assert asyncio.run(status_of(app, "POST", "/v1/requests/x/cancel", None)) == 404


def test_cors_is_off_unless_asked_for(file: Path) -> None:
    async def story() -> None:
        ask = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        async with client(made(Settings()), None) as http:
            reply = await http.options("/v1/models", headers=ask)
            assert reply.status_code == 403
            assert not [name for name in reply.headers if name.startswith("access-control")]
        shared = made(Settings(api_keys=file, origins=("https://app.example",)))
        async with client(shared, None) as http:
            reply = await http.options("/v1/models", headers=ask)
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
            assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
            nowhere = await http.options("/nowhere", headers=ask)
            assert (nowhere.status_code, nowhere.headers) == (200, reply.headers)
            for origin in ("https://evil.example", "null", "https://app.example.evil.example"):
                refused = await http.options("/v1/models", headers=ask | {"Origin": origin})
                assert "access-control-allow-origin" not in refused.headers
            assert (await http.get("/v1/models", headers={"Origin": ask["Origin"]})).status_code == 401
        async with client(shared, ALICE[0]) as http:
            reply = await http.post("/v1/chat/completions", json=CHAT, headers={"Origin": ask["Origin"]})
            assert reply.headers["access-control-allow-origin"] == ask["Origin"]
            assert "x-request-id" in reply.headers["access-control-expose-headers"]

    asyncio.run(story())


def test_no_star_where_there_are_keys(file: Path) -> None:
    Settings(origins=("*",))
    with pytest.raises(ConfigError, match="cannot be"):
        Settings(origins=("*",), api_keys=file)
    with pytest.raises(ConfigError, match="scheme and a host"):
        Settings(origins=("app.example",))


# ------------------------------------------------------------------------------------------------ the file


HASH = 'hash = "sha256:' + "a1" * 32 + '"'  # the names of tests must not change from run to run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[keys.a]\nadmin = true", "has no `hash`"),
        (f"[keys.a]\n{HASH}\nadmn = true", "unknown field `admn`. Did you mean 'admin'"),
        (f"[keys.a]\n{HASH}\nadmin = 1", "`admin` in .* true or false: got 1"),
        (f"[keys.a]\n{HASH}\nrequests_per_minute = 0.5", "`requests_per_minute` in .* at least 1"),
        (f"[keys.a]\n{HASH}\ntokens_per_minute = inf", "`tokens_per_minute`"),
        (f"[keys.a]\n{HASH}\ntokens_per_minute = true", "`tokens_per_minute`"),
        (f"[keys.a]\n{HASH}\nconcurrent = 1.5", "`concurrent` in .* whole number"),
        (f"[keys.a]\n{HASH}\npriority = -1", "`priority`"),
        (f'[keys.a]\n{HASH}\nmodels = "tiny"', "`models` in .* a list of names"),
        ('[keys.a]\nhash = "ob-secret"', '`hash` in .* "sha256:" and 64 hexadecimal digits.$'),
        (f"[keys.a]\n{HASH}\n[keys.b]\n{HASH}", "have the same key"),
        (f'[keys."a b"]\n{HASH}', "a name is letters"),
        ("[key.a]", "has `key`"),
        ("keys = 3", "must be tables"),
        ("[keys]\na = 3", "must be a table"),
        ("[keys.a", "is no TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        parse_keys(text, "keys.toml")
    assert "keys.toml" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("# none yet\n")
    with pytest.raises(ConfigError, match="openbook key"):
        made(Settings(api_keys=tmp_path / "keys.toml"))


def test_the_file_is_read_anew(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself when it changes; a broken one leaves the keys as they were, and says so once."""
    app = made(Settings(api_keys=file))
    gate = app.state.server.gate

    def known(key: str) -> bool:
        return asyncio.run(status_of(app, "GET", "/v1/models", key)) == 200

    async def look() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("openbook.serve.gate.LOOKS", 0.01)
            task = asyncio.ensure_future(gate.watch())
            await asyncio.sleep(0.08)
            task.cancel()

    file.write_text(FILE.replace(BOB[1], new_key()[1]) + "# changed\n")
    assert known(BOB[0])
    asyncio.run(look())
    assert known(ALICE[0])
    assert not known(BOB[0])
    for broken in ("[keys.alice", "[keys.alice]\nhash = 3\n"):
        capsys.readouterr()
        file.write_text(broken)
        asyncio.run(look())
        assert known(ALICE[0])
        assert capsys.readouterr().err.count("The keys stay as they were") == 1
    file.unlink()
    asyncio.run(look())
    assert known(ALICE[0])
    file.write_text(FILE)
    gate.reload()
    assert known(BOB[0])


def test_a_file_that_all_may_read_is_warned_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(Settings(api_keys=file))
    assert "chmod" not in capsys.readouterr().err
    os.chmod(file, 0o644)
    made(Settings(api_keys=file))
    assert "chmod 600" in capsys.readouterr().err


def test_the_verb_makes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert main(["key", str(path), "a.b", "--admin", "--requests-per-minute", "60", "--model", "tiny"]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("ob-")
    path.write_text("# mine\n" + path.read_text())
    assert main(["key", str(path), "carol"]) == 0
    second = capsys.readouterr().out.strip()
    text = path.read_text()
    assert text.startswith("# mine\n")
    assert first.out.strip() not in text
    assert path.stat().st_mode & 0o777 == 0o600
    keys = parse_keys(text, "")
    key, carol = keys.find(first.out.strip()), keys.find(second)
    assert key is not None
    assert (key.name, key.admin, key.requests_per_minute, key.models) == ("a.b", True, 60.0, ("tiny",))
    assert carol is not None
    assert (carol.name, carol.admin, carol.models) == ("carol", False, None)
    for words, said in (
        (["carol"], "has a key of that name"),
        (["x y"], "a name is letters"),
        (["z", "--priority", "-4"], "`priority`"),
    ):
        assert main(["key", str(path), *words]) == 2
        assert said in capsys.readouterr().err
        assert path.read_text() == text


def test_a_signal_has_the_file_read(file: Path, tmp_path: Path) -> None:
    """SIGHUP to a process that serves; all that it says on standard error is JSON."""
    script = tmp_path / "serving.py"
    script.write_text(
        "from pathlib import Path\n"
        "from openbook.chat.scripted import Scripted\n"
        "from openbook.serve import gate\n"
        "from openbook.serve.run import serve\n"
        "from openbook.serve.served import Served\n"
        "from openbook.serve.settings import Settings\n"
        "gate.LOOKS = 3600.0\n"
        f"settings = Settings(port=0, api_keys=Path({str(file)!r}))\n"
        "serve(lambda: [Served(name='tiny', endpoint=Scripted())], settings)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = json.loads(process.stderr.readline())
        assert said["event"] == "ready"
        with httpx.Client(base_url=said["url"], headers={"Authorization": f"Bearer {BOB[0]}"}) as http:
            assert http.get("/v1/models").status_code == 200
            file.write_text(FILE.replace(BOB[1], new_key()[1]))
            process.send_signal(signal.SIGHUP)
            assert http.get("/v1/models").status_code in (200, 401)
            line = ""
            while '"keys"' not in line:
                line = process.stderr.readline()
            assert json.loads(line)["keys"] == 3
            assert http.get("/v1/models").status_code == 401
        with socket.create_connection(("127.0.0.1", int(said["url"].rpartition(":")[2]))) as garbage:
            garbage.sendall(b"nonsense\r\n\r\n")
            assert garbage.recv(100).startswith(b"HTTP/1.1 400")
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    events = [json.loads(line) for line in rest.splitlines()]
    assert {"said", "drained"} <= {event["event"] for event in events}
    assert process.returncode == 0
