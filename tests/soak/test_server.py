"""Five hundred people at once over one small model, many of whom leave: nobody is lost, pages are back, memory is flat.

OPENBOOK_SOAK_SECONDS: how long (default 60).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import openbook as ob
from openbook.generate.settings import Settings
from tests.serve.conftest import folder, serving_of
from tests.serve.crowd import Crowd, gone
from tests.soak.test_engine import resident

__all__ = ["folder"]  # the fixture
SECONDS = float(os.environ.get("OPENBOOK_SOAK_SECONDS", "60"))


@pytest.mark.soak
def test_a_minute_of_five_hundred(folder: Path) -> None:
    engine = ob.Engine(ob.load(folder), ob.Tokenizer.load(folder), memory="512KiB", settings=Settings(rows=32))
    with engine, serving_of({"tiny": engine}) as serving:
        crowd = Crowd(serving.port)
        asyncio.run(crowd.stay(500, SECONDS / 4))
        before, warm = resident(), crowd.begun
        asyncio.run(crowd.stay(500, SECONDS * 3 / 4))
        grown = resident() / before - 1
        gone(serving)
        stats = engine.core.stats
        print(
            f"\n{crowd.begun} requests ({warm} before memory was looked at), {dict(crowd.ends)}, {grown:+.2%}, {stats}"
        )
        assert crowd.ends["left"] > 100
        assert set(crowd.statuses) == {200}
        assert stats.failures == 0
        assert stats.preemptions > 0
        assert grown < 0.05
