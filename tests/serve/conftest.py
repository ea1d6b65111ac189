"""What tests of the server share: servers over scripts, and one over an engine with a tiny random model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs an HTTP client")

import httpx

import openbook as ob
from openbook.chat.engine import Engine
from openbook.models.load import save
from openbook.models.make import make, spec_of
from openbook.serve.run import background
from openbook.serve.served import Served
from openbook.serve.server import Server
from openbook.serve.settings import Settings
from openbook.serve.stored import Stored
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES

SIZES = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "context": 1024}


class Serving:
    """A server that runs: its address, what is behind it, and a plain HTTP client."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)

    @property
    def v1(self) -> str:
        """What clients of OpenAI call the base URL."""
        return self.url + "/v1"


def served_of(endpoints: Mapping[str, object]) -> list[Served]:
    """Endpoints by name; a `Served` stands for itself."""
    return [
        one if isinstance(one, Served) else Served(name=name, endpoint=one, context=1024)
        for name, one in endpoints.items()
    ]


@contextmanager
def serving_of(endpoints: Mapping[str, object], settings: Settings | None = None) -> Iterator[Serving]:
    """A server in the background over endpoints by name; a `Served` may stand for its endpoint."""
    with background(served_of(endpoints), settings) as listener:
        made = Serving(listener.server, listener.port)
        with made.http:
            yield made


Start = Callable[..., Serving]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers that end with the test: `start(tiny=Scripted("Hello."))`, `start(settings, tiny=…)`."""
    with ExitStack() as stack:
        yield lambda settings=None, **endpoints: stack.enter_context(serving_of(endpoints, settings))


@pytest.fixture(scope="session")
def one() -> Iterator[Serving]:
    """One server for many tests; see `put`."""
    with serving_of({}) as made:
        yield made


@pytest.fixture
def put(one: Serving) -> Iterator[Start]:
    """Puts endpoints behind one server, in place of those of the test before: `put(tiny=Scripted("Hello."))`. Quicker
    than `start`, for tests of which it is all the same how often the server was asked before."""
    models = one.server.models

    def change(**endpoints: object) -> Serving:
        for name in list(models.all):
            models.remove(name)
        for served in served_of(endpoints):
            models.add(served)
        one.server.stored = Stored(one.server.settings)
        return one

    yield change
    until = time.monotonic() + 5
    while len(one.server.board) and time.monotonic() < until:
        time.sleep(0.01)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a chat template."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = Tokenizer.train(SENTENCES * 3, 400)
    save(make(spec_of("llama", SIZES | {"vocab": tokenizer.vocab}), 3), path)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def engine(folder: Path) -> Iterator[Engine]:
    """An engine over it."""
    with ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="32MiB") as made:
        yield made


@pytest.fixture(scope="session")
def real(engine: Engine) -> Iterator[Serving]:
    """A server over that engine, as the model `tiny`."""
    with serving_of({"tiny": engine}) as made:
        yield made
