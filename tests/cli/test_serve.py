"""`openbook serve`: what its words mean, before anything is loaded."""

from __future__ import annotations

import pytest

from openbook.cli.serve import Config, _adapters, _named
from openbook.errors import UsageError
from openbook.serve.settings import Settings


def test_its_defaults_are_the_servers() -> None:
    assert Config(dirs=("x",)).settings() == Settings()


def test_its_options_reach_the_server() -> None:
    given = {
        "port": 0,
        "stall": 1.0,
        "keep_alive": 2.0,
        "body": 3,
        "requests": 4,
        "connections": 5,
        "cached_price": 0.5,
    }
    assert Config(dirs=("x",), **given).settings() == Settings(**given)  # type: ignore[arg-type]


def test_names_of_models() -> None:
    assert _named(["chat=DIR", "org/name", "far=http://127.0.0.1:9", "http://127.0.0.1:8/v1?a=b"]) == {
        "chat": "DIR",
        "org/name": "org/name",
        "far": "http://127.0.0.1:9",
        "http://127.0.0.1:8/v1?a=b": "http://127.0.0.1:8/v1?a=b",
    }
    for words, said in (([], "Nothing to serve"), (["a=x", "a=y"], "called 'a'"), (["=x"], "DIR or NAME=DIR")):
        with pytest.raises(UsageError, match=said):
            _named(words)


def test_names_of_adapters() -> None:
    assert _adapters(["poems=A"], ["m"]) == {"m": {"poems": "A"}}
    assert _adapters(["m/poems=A", "n/tales=B"], ["m", "n"]) == {"m": {"poems": "A"}, "n": {"tales": "B"}}
    for word in ("poems", "poems=A", "x/poems=A", "m/m=A"):
        with pytest.raises(UsageError):
            _adapters([word], ["m", "n"])


@pytest.mark.parametrize("asked", [{"replicas": "2"}, {"ray_address": "auto"}])
def test_what_is_of_ray_needs_it(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="of --ray"):
        Config(dirs=("x",), **asked).scale()  # type: ignore[arg-type]
