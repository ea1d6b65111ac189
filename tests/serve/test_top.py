"""`openbook top`: what it reads of a server, what it makes of that, and what it says where there is none."""

from __future__ import annotations

import io
import json
import math
import re
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra `serve`")

import httpx
from rich.console import Console

from openbook.chat import Scripted
from openbook.cli import main
from openbook.cli.top import Look, ModelView, View, between, look, page_of, quantile, span
from openbook.errors import RemoteError
from openbook.serve.keys import new_key
from openbook.serve.settings import Settings
from tests.serve.conftest import Serving, Start


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_a_server_at_work(real: Serving) -> None:
    before = look(real.url)
    used = [
        real.http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 8, "ignore_eos": True}).json()["usage"]
        for _ in range(3)
    ]
    real.http.post("/v1/chat/completions", json=CHAT | {"model": "x"})
    after = look(real.url)
    view = between(before, after)
    passed = after.at - before.at
    assert view.ready
    assert view.requests * passed == pytest.approx(4 + 2)  # and the two that the first look asked for
    assert view.refused * passed == pytest.approx(1)
    model = view.models["tiny"]
    assert model.written * passed == pytest.approx(sum(one["completion_tokens"] for one in used))
    assert model.read * passed == pytest.approx(sum(one["prompt_tokens"] for one in used))
    for middle, high in (model.first, model.gap, model.queue):
        assert middle is not None
        assert high is not None
        assert 0 < middle <= high < 60
    assert (model.running, model.waiting) == (0, 0)
    assert model.memory is not None
    assert model.used is not None
    assert 0 <= model.used < model.memory


def test_requests_are_listed(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    serving = start(tiny=Scripted(["a"] * 1000, pace=0.02))
    stream = httpx.stream("POST", serving.v1 + "/chat/completions", json=CHAT | {"stream": True})
    with stream as reply:
        lines = reply.iter_lines()
        next(lines)
        assert main(["top", serving.url + "/v1/", "--json", "--every", "0.1"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["at_work"] == 1
        assert said["url"] == serving.url
        assert said["working"][0]["path"] == "/v1/chat/completions"
        assert said["working"][0]["model"] == "tiny"
        assert said["working"][0]["tokens"] >= 1
        assert said["models"]["tiny"]["running"] is None  # a script has no engine to ask
        assert main(["top", serving.url.removeprefix("http://"), "--once", "--every", "0.1"]) == 0
        page = capsys.readouterr().out
        assert "at work 1" in page
        assert "/v1/chat" in page


def test_it_brings_its_key(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[keys.alice]\nhash = "{digest}"\nadmin = true\n')
    serving = start(Settings(port=0, api_keys=tmp_path / "keys.toml"), tiny=Scripted())
    words = ["top", serving.url, "--json", "--every", "0.1"]
    monkeypatch.delenv("OPENBOOK_API_KEY", raising=False)
    assert main(words) == 1
    assert "put it in OPENBOOK_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("OPENBOOK_API_KEY", "wrong")
    assert main(words) == 1
    assert "does not know the key" in capsys.readouterr().err
    monkeypatch.setenv("OPENBOOK_API_KEY", key)
    assert main(words) == 0


def test_no_server_and_other_servers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert main(["top", f"127.0.0.1:{taken.getsockname()[1]}", "--once"]) == 1
    assert "Is it running there? openbook serve" in capsys.readouterr().err
    assert main(["top", "ftp://x", "--once"]) == 2
    assert main(["top", "--every", "0", "--once"]) == 2
    assert main(["top", "http://127.0.0.1:99999", "--once"]) == 1
    assert "No server answers" in capsys.readouterr().err


def test_it_waits_for_a_server_that_went_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = start(tiny=Scripted())
    good, terminal, slept = look(serving.url), Terminal(), 0

    def asleep(_: float) -> None:
        nonlocal slept
        slept += 1
        if slept == 4:
            raise KeyboardInterrupt

    def away(_: str) -> Look:
        if slept == 1:
            raise RemoteError("No server answers.")
        return good

    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("openbook.cli.top.look", away)
    monkeypatch.setattr("openbook.cli.top.time.sleep", asleep)
    assert main(["top", serving.url]) == 0
    said = terminal.getvalue()
    assert said.index("ready") < said.index("No server answers.") < said.rindex("ready")


def test_quantiles() -> None:
    buckets = {0.1: 10.0, 0.2: 90.0, 1.0: 99.0, math.inf: 100.0}
    assert quantile(buckets, 0.1) == pytest.approx(0.1)
    assert quantile(buckets, 0.5) == pytest.approx(0.15)
    assert quantile(buckets, 0.99) == pytest.approx(1.0)
    assert quantile(buckets, 1.0) == pytest.approx(1.0)  # longer than all bounds: at least the last
    assert quantile({}, 0.5) is None
    assert quantile({0.1: 0.0, math.inf: 0.0}, 0.5) is None


def test_a_server_that_began_anew_is_not_counted_backwards() -> None:
    sample = {"openbook_requests_total": [({}, 100.0)]}
    fewer = {"openbook_requests_total": [({}, 3.0)]}
    assert between(Look(at=0, samples=sample, requests=()), Look(at=1, samples=fewer, requests=())).requests == 0


def test_the_page() -> None:
    """What comes from the server obeys nothing and breaks nothing; a small terminal sees the oldest requests."""
    model = ModelView(
        running=12, waiting=3, read=100.0, written=456.7, cached=0.75, first=(0.05, 1.25), gap=(0.01, 0.02),
        queue=(0.0, 0.3), memory=2 << 30, used=1 << 30,
    )  # fmt: skip
    calls = [
        {"id": f"[red]req-{i}", "caller": "alice", "model": "tiny", "path": "/v1/x", "seconds": 70.0 - i, "tokens": i}
        for i in range(30)
    ]
    view = View(
        ready=True, seconds=3700, at_work=30, requests=1.5, refused=0, stopped=0, models={"tiny": model}, working=calls
    )
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(page_of(view, "http://127.0.0.1:8000", 140, 20))
    page = console.export_text()
    assert "ready for 1h01m" in page
    assert "457" in page
    assert re.search(r"50ms +1.2s +10ms +20ms +300ms", page)
    assert "█████░░░░░  50% of 2,048 MiB" in page
    assert "[red]req-0" in page
    assert "and 19 more" in page
    assert len(page.splitlines()) <= 20
    narrow = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    narrow.print(page_of(view, "http://127.0.0.1:8000", 80, 20))
    assert re.search(r"12 +3 +457 +100 +75% +50ms +1.2s +10ms +20ms +300ms +50%", narrow.export_text())


@pytest.mark.parametrize(
    ("seconds", "said"), [(1.54, "1.5s"), (245, "4m05s"), (11_530, "3h12m"), (190_000, "2d04h"), (59.99, "60.0s")]
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said
