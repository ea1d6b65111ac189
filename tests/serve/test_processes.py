"""A server as a process: signals under load, restarts, what does not load, ports that are taken."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.serve.raw import CHAT, SCRIPT, Process, Raw, ask, asking, free, listens, process, scripted, until

pytestmark = pytest.mark.slow  # each by itself is quick; together they are not

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def texts(said: bytes) -> str:
    """What a stream of chats said."""
    return "".join(re.findall(r'"content":"([^"]*)"', said.decode()))


def draining(serving: Process, number: int = signal.SIGTERM) -> None:
    serving.signal(number)
    serving.event("draining")


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_the_first_signal_lets_running_work_finish(number: int) -> None:
    with scripted(pace=0.03, pieces=25) as serving:
        serving.ready()
        streams = [Raw(serving.port).ask() for _ in range(8)]
        whole = Raw(serving.port).ask(stream=False)
        for stream in streams:
            stream.until(b"data: ")
        waiting = Raw(serving.port)
        draining(serving, number)
        status, said = ask(serving.port, CHAT, asking(), "POST")
        assert (status, said["error"]["code"]) == (503, "unavailable")
        assert b"HTTP/1.1 503" in waiting.ask().until(b"}}")
        assert ask(serving.port, "/health/ready")[0] == 503
        assert ask(serving.port, "/health/live")[0] == 200
        for stream in streams:
            said = stream.until(b"[DONE]")
            assert texts(said) == "".join(f"{n} " for n in range(25))
        assert texts(whole.until(b"}}")) == "".join(f"{n} " for n in range(25))
        assert serving.ended() == 0
        assert "Traceback" not in serving.said


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGTERM", "SIGINT"])
def test_the_second_signal_stops_it_with_words(number: int) -> None:
    with scripted(pace=0.03, pieces=10_000) as serving:
        serving.ready()
        streams = [Raw(serving.port).ask() for _ in range(4)]
        whole = Raw(serving.port).ask(stream=False)
        for stream in streams:
            stream.until(b"data: ")
        draining(serving, number)
        serving.signal(number)
        for stream in streams:
            said = stream.rest()
            assert b"The server stops now." in said
            assert b"[DONE]" not in said
            assert said.endswith(b"0\r\n\r\n")  # the reply itself is whole
        assert b"HTTP/1.1 503" in whole.rest()
        assert serving.ended() == 0
        assert "Traceback" not in serving.said


@pytest.mark.slow
def test_a_reader_that_reads_nothing_does_not_keep_it_from_ending() -> None:
    with scripted(pace=0.0, pieces=1_000_000) as serving:
        serving.ready()
        raw = Raw(serving.port, buffer=4096).ask()
        raw.until(b"data: ")
        time.sleep(0.3)  # its buffers are full
        draining(serving)
        serving.signal()
        assert serving.ended() == 0


def test_a_killed_server_is_followed_by_another_at_once() -> None:
    with scripted(pace=0.05, pieces=1000) as first:
        first.ready()
        stream = Raw(first.port).ask()
        stream.until(b"data: ")
        first.signal(signal.SIGKILL)
        assert first.ended() == -signal.SIGKILL
        with scripted(port=first.port, pieces=3, pace=0.0) as second:
            assert second.ready().port == first.port
            assert b"[DONE]" not in stream.rest()
            assert b"[DONE]" in Raw(second.port).ask().until(b"[DONE]")


def test_while_it_loads_it_lives_and_is_not_ready() -> None:
    with scripted(loads=0.7, port=(port := free())) as serving:
        until(lambda: listens(port))
        assert ask(port, "/health/live")[0] == 200
        status, said = ask(port, "/health/ready")
        assert (status, said["error"]["message"]) == (503, "The server is not ready yet.")
        assert ask(port, CHAT, asking(), "POST")[0] == 503
        serving.ready()
        assert ask(port, "/health/ready")[0] == 200


def test_a_signal_while_it_loads_ends_it() -> None:
    with scripted(loads=60, port=(port := free())) as serving:
        until(lambda: listens(port))
        serving.signal()
        assert serving.ended() == 0


def test_a_port_that_is_taken_is_said() -> None:
    with scripted() as first:
        first.ready()
        with scripted(port=first.port) as second:
            assert second.ended() == 1
            until(lambda: "Is another server there?" in second.said)
            assert f"127.0.0.1:{first.port}" in second.said
        assert ask(first.port, "/health/ready")[0] == 200


def test_more_connections_than_files_are_refused_and_not_left_waiting() -> None:
    few = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))\n"
    with process("-c", few + SCRIPT, "0", "3", "0", "0", "30") as serving:
        serving.ready()
        crowd = [Raw(serving.port) for _ in range(60)]
        heads = [one.ask().until(b"\r\n\r\n").split()[1] for one in crowd]
        assert heads.count(b"200") >= 25
        assert heads.count(b"503") >= 25
        for one in crowd:
            one.leave()
        until(lambda: ask(serving.port, "/health/ready")[0] == 200)


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with process("-m", "openbook", "serve", str(tmp_path), "--port", "0") as serving:
        assert serving.ended() == 1
        until(lambda: "error: " in serving.said)
        assert "Traceback" not in serving.said
        assert f"no tokenizer.json in '{tmp_path}'" in serving.said


@pytest.mark.slow
def test_the_command_finishes_what_runs(folder: Path) -> None:
    with process("-m", "openbook", "serve", f"tiny={folder}", "--port", "0", "--memory", "32MiB") as serving:
        serving.ready()
        more = {"max_tokens": 900, "ignore_eos": True, "temperature": 1.0}
        streams = [Raw(serving.port).ask(**more, seed=seed) for seed in range(6)]
        for stream in streams:
            stream.until(b"data: ")
        draining(serving)
        assert ask(serving.port, CHAT, asking(), "POST")[0] == 503
        for stream in streams:
            assert b'"finish_reason":"length"' in stream.until(b"[DONE]")
        assert serving.ended() == 0
        assert "Traceback" not in serving.said
