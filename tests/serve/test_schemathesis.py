"""Every route of the OpenAPI page, asked with what the page allows and with what it does not: nothing fails, and the
page says what the code does. No route is left out, and no check."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from openbook.chat.scripted import Scripted
from openbook.serve.keys import new_key
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, serving_of

pytestmark = pytest.mark.slow  # each by itself is quick; together they are not

# What schema and types both see. A request that the page allows may be refused for another reason (a context that is
# too short, an unknown id, parameters that contradict each other), but never for these.
TYPES = {"invalid_json", "invalid_value", "unknown_parameter"}
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404]

[generation]
mode = "all"

[cache]
enabled = false
"""


@schemathesis.hook("map_body")
def named(_: Any, body: Any) -> Any:
    """A model that is there, and time to answer, for what is behind to be reached. What is wrong stays as it is."""
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 256:
        body = body | {"model": "tiny"}
    if isinstance(body.get("timeout"), float | int) and 0 < body["timeout"] < 60:
        body = body | {"timeout": 60}
    return body


@schemathesis.check
def schema_is_types(_: Any, response: Any, case: Any) -> None:
    """What the schema allows the types allow; what is refused all the same has a name."""
    if case.meta is not None and case.meta.generation.mode.is_positive and response.status_code == 400:
        error = response.json()["error"]
        assert error["code"] not in TYPES, f"the page allows what is refused: {error}"
        assert error["param"] or not case.body, f"refused without a name: {error}"


@pytest.fixture(scope="module")
def scripted() -> Iterator[Serving]:
    with serving_of({"tiny": Scripted("Hello.", ["str", "eamed"], forever=True)}) as made:
        yield made


def ask_all(page: dict[str, Any], url: str, mode: Any, at: Path, often: int = 4) -> int:
    """Asks every operation of a page a few times; how many there are."""
    config = at / "schemathesis.toml"
    config.write_text(f'base-url = "{url}"\n' + CONFIG)
    asked = 0
    for found in schemathesis.openapi.from_dict(page, config=SchemathesisConfig.from_path(config)).get_all_operations():
        operation = found.ok()
        if mode.is_negative and not operation.body:
            continue  # nothing can be wrong: every text is a name

        @settings(
            max_examples=often,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            case.call_and_validate()

        one()
        asked += 1
    return asked


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_page_is_true(scripted: Serving, tmp_path: Path, mode: Any) -> None:
    page = scripted.http.get("/openapi.json").json()
    asked = ask_all(page, scripted.url, mode, tmp_path)
    bodies = sum("requestBody" in operation for path in page["paths"].values() for operation in path.values())
    assert asked == (bodies if mode.is_negative else sum(map(len, page["paths"].values())))


@pytest.mark.parametrize("fault", ["looser", "tighter", "reply", "status"])
def test_a_page_that_is_not_true_is_found(scripted: Serving, tmp_path: Path, fault: str) -> None:
    page = scripted.http.get("/openapi.json").json()
    path = "/v1/models" if fault == "reply" else "/detokenize"
    operation, schemas = page["paths"][path], page["components"]["schemas"]
    if fault == "looser":
        schemas["DetokenizeRequest"]["properties"]["tokens"] = {"type": "string"}
    elif fault == "tighter":
        bit = {"type": "integer", "minimum": 0, "maximum": 1}
        properties = {"model": {"type": "string", "maxLength": 1}, "tokens": {"type": "array", "items": bit}}
        schemas["DetokenizeRequest"]["properties"] = properties
    elif fault == "reply":
        schemas["ModelOut"]["properties"]["created"] = {"type": "string"}
    else:
        del operation["post"]["responses"]["200"], operation["post"]["responses"]["400"]
    mode = GenerationMode.NEGATIVE if fault == "tighter" else GenerationMode.POSITIVE
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        ask_all(page | {"paths": {path: operation}}, scripted.url, mode, tmp_path, 200)


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Serving]:
    """A server that asks for keys; its client has one."""
    key, digest = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.root]\nhash = "{digest}"\nadmin = true\npriority = 1000\n')
    file.chmod(0o600)
    with serving_of({"tiny": Scripted("Hello.", forever=True)}, Settings(port=0, api_keys=file)) as made:
        made.http.headers["authorization"] = f"Bearer {key}"
        yield made


@pytest.mark.soak
@pytest.mark.parametrize(("behind", "often"), [("scripted", 200), ("keyed", 20), ("real", 60)])
def test_the_page_is_true_at_length(behind: str, often: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    serving: Serving = request.getfixturevalue(behind)
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    serving.http.post("/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=120)  # what is built is built
    key = serving.http.headers.get("authorization", "")
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
            f"{serving.url}/openapi.json", "--checks", "all", "--continue-on-failure", "--request-timeout", "60",
            "--max-examples", str(often), *(["--header", f"Authorization: {key}"] if key else []),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.serve.test_schemathesis"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert serving.http.get("/health/ready").status_code == 200
