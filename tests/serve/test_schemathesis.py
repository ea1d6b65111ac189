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
from tests.serve.conftest import Serving, serving_of

# What schema and types both see. A request that the page allows may be refused for another reason (a context that is
# too short, an unknown id, parameters that contradict each other), but never for these.
TYPES = {"invalid_json", "invalid_value", "unknown_parameter"}
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404]

[generation]
mode = "all"
"""


@schemathesis.hook("map_body")
def named(_: Any, body: Any) -> Any:
    """A model that is there, for what is behind its name to be reached; wrong names stay as they are."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and 0 < len(body["model"]) <= 256:
        return body | {"model": "tiny"}
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


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_page_is_true(scripted: Serving, tmp_path: Path, mode: Any) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    page = schemathesis.openapi.from_url(f"{scripted.url}/openapi.json", config=SchemathesisConfig.from_path(config))
    asked = 0
    for found in page.get_all_operations():
        operation = found.ok()
        if mode.is_negative and not operation.body:
            continue  # nothing can be wrong: every text is a name

        @settings(
            max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            case.call_and_validate()

        one()
        asked += 1
    assert asked >= 5


@pytest.mark.soak
@pytest.mark.parametrize("behind", ["scripted", "real"])
def test_the_page_is_true_at_length(behind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    serving: Serving = request.getfixturevalue(behind)
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
            f"{serving.url}/openapi.json", "--checks", "all", "--continue-on-failure",
            "--max-examples", "200" if behind == "scripted" else "60",
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.serve.test_schemathesis"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert serving.http.get("/health/ready").status_code == 200
