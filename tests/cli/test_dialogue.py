"""The conversation in the terminal, with a speaker whose words are known."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openbook.chat.messages import Delta, Message
from openbook.chat.scripted import Call, Scripted
from openbook.cli.dialogue import COMMANDS, SETTINGS, Dialogue
from openbook.errors import ConfigError, InputError, UsageError
from openbook.generate.sampling import Sampling

START = Sampling(temperature=0.8, top_p=0.95)


def echo(call: Call) -> list[str]:
    """How many messages are seen, and the last one, in two pieces."""
    return [f"{len(call.messages)}: ", call.messages[-1].content or ""]


def talk(
    lines: Sequence[str], monkeypatch: pytest.MonkeyPatch, *replies: Any, **options: Any
) -> tuple[Dialogue, Scripted, int]:
    """Say `lines` from a pipe; the dialogue, its speaker and the exit status."""
    data = io.BytesIO("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    speaker = Scripted(*(replies or [echo] * len(lines)))
    dialogue = Dialogue(speaker, START, **options)
    return dialogue, speaker, dialogue.run()


def contents(messages: Sequence[Message]) -> list[str | None]:
    return [message.content for message in messages]


def test_turns_remember_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["hello", "", "again \\", "and again", "//not a command"]
    dialogue, speaker, status = talk(lines, monkeypatch)
    assert status == 0
    assert capsys.readouterr().out == "1: hello\n3: again \nand again\n5: /not a command\n"
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 3
    assert all(call.trim and call.sampling == START for call in speaker.calls)


def test_a_model_that_continues(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts are joined with spaces, an empty line lets it go on, and an end begins a new text."""
    on = Delta(finish="length")
    replies = [[" upon", on], [" a time", on], ["there was", Delta(finish="stop")], ["new", on]]
    dialogue, speaker, _ = talk(["once", "", "and", "", "then"], monkeypatch, *replies, continues=True)
    texts = ["".join(message.content or "" for message in call.messages) for call in speaker.calls]
    assert texts == ["once", "once upon", "once upon a time and", "then"]
    assert "begins a new one" in capsys.readouterr().err
    assert len(dialogue.messages) == 8, "the conversation is kept whole"


def test_what_the_model_no_longer_sees_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = Delta(dropped=(1, 2))
    replies = ["a", [two, "b"], [two, "c"], [Delta(dropped=(1, 2, 3, 4)), "d"]]
    dialogue, speaker, _ = talk(["1", "2", "3", "4"], monkeypatch, *replies, system="be kind")
    said = capsys.readouterr().err.splitlines()
    assert [line.split("oldest ")[1].split(":")[0] for line in said] == ["2 messages of 3", "4 messages of 7"]
    assert len(dialogue.messages) == 8
    assert all(call.messages[0] == Message.system("be kind") for call in speaker.calls)


def test_an_error_loses_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing = [echo, InputError("20 tokens do not fit."), ["begun", InputError("gone")], echo]
    dialogue, _, status = talk(["a", "word " * 20, "c", "b"], monkeypatch, *failing)
    assert status == 1, "input from a pipe could not all be answered"
    said = capsys.readouterr()
    assert "20 tokens do not fit" in said.err
    assert said.out == "1: a\nbegun\n3: b\n"
    assert contents(dialogue.messages) == ["a", "1: a", "b", "3: b"]


def test_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/temperature 0", "/top-k 5", "/seed 3", "/seed None", "/max-tokens", "/settings", "a"]
    dialogue, speaker, status = talk(lines, monkeypatch)
    assert status == 0
    assert speaker.calls[0].sampling == dialogue.sampling == Sampling(temperature=0.0, top_p=0.95, top_k=5)
    said = capsys.readouterr().err
    assert "temperature: 0.0" in said
    assert "max tokens: 256" in said
    assert all(f"{name.replace('_', '-')}: " in said for name in SETTINGS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temprature 1", "Did you mean '/temperature'"),
        ("/temperature hot", "takes a number: got 'hot'. It stays 0.8"),
        ("/temperature -1", "at least 0"),
        ("/top-p nan", "top_p"),
        ("/save", "needs a file name"),
        ("/save /proc/nowhere/x.json", "Cannot write"),
        ("/load /nowhere/x.json", "nowhere"),
        ("/retry", "no answer yet"),
        ("/undo", "nothing to take back"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_wrong_lines_change_nothing(
    line: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue, _, status = talk([line, "on"], monkeypatch)
    assert says in capsys.readouterr().err
    assert dialogue.sampling == START
    assert len(dialogue.messages) == 2
    assert status == 1


def test_retry_undo_reset_system_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogue, speaker, _ = talk(["a", "/retry", "b", "/undo", "/exit", "never"], monkeypatch)
    assert contents(dialogue.messages) == ["a", "1: a"]
    assert [contents(call.messages) for call in speaker.calls] == [["a"], ["a"], ["a", "1: a", "b"]]
    dialogue, speaker, _ = talk(["/system be kind", "a", "/reset", "/system", "b"], monkeypatch)
    assert contents(dialogue.messages) == ["b", "1: b"]
    assert [contents(call.messages) for call in speaker.calls] == [["be kind", "a"], ["b"]]


def test_save_and_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    first, _, _ = talk(["/system be kind", "hellö", f"/save {file}"], monkeypatch)
    assert json.loads(file.read_text("utf-8"))["messages"][0] == {"role": "user", "content": "hellö"}
    second, _, _ = talk([f"/load {file}", "more"], monkeypatch)
    assert second.system == "be kind"
    assert second.messages[:2] == first.messages
    assert len(second.messages) == 4


@pytest.mark.parametrize("text", ["[]", "{}", '{"messages": [3]}', '{"messages": [{"role": "cat", "content": ""}]}'])
def test_a_file_that_is_no_conversation(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    dialogue = Dialogue(Scripted(), START, messages=[Message.user("kept")])
    with pytest.raises(ConfigError):
        dialogue.take(f"/load {tmp_path}/x.json")
    assert contents(dialogue.messages) == ["kept"]


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    Dialogue(Scripted(), START).take("/help")
    said = capsys.readouterr().err
    assert all(command in said for command in COMMANDS)
    with pytest.raises(UsageError):
        Dialogue(Scripted(), START).take("/helpp")


# ------------------------------------------------------------------------------------------------ at a real terminal

PROGRAM = """
import asyncio
from openbook.chat.messages import Delta
from openbook.cli.dialogue import Dialogue
from openbook.generate.sampling import Sampling
class Slow:
    async def chat(self, messages, sampling, *, tools=(), trim=False):
        yield Delta(text=f"begin {len(messages)} ")
        if messages[-1].content == "slow":
            await asyncio.sleep(60)
        yield Delta(text="end", finish="stop")
raise SystemExit(Dialogue(Slow(), Sampling()).run())
"""


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", NO_COLOR="1")
            os.execv(sys.executable, [sys.executable, *command])
        self.seen = ""

    def until(self, text: str, seconds: float = 30) -> None:
        """Read until `text` was written."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.handle], [], [], max(0, end - time.monotonic()))
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            try:
                self.seen += os.read(self.handle, 4096).decode("utf-8", "replace")
            except OSError:
                assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        time.sleep(0.2)  # nobody types in the moment between the prompt and the wait for keys
        os.write(self.handle, text.encode())

    def status(self, seconds: float = 30) -> int:
        """The exit status, once the program has ended by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("the program does not end")


def test_ctrl_c_stops_the_answer_not_the_program() -> None:
    terminal = Terminal("-c", PROGRAM)
    terminal.until("> ")
    terminal.type("slow\n")
    terminal.until("begin 1")
    terminal.type("\x03")
    terminal.until("stopped; what was said so far is kept")
    terminal.until("> ")
    terminal.type("next\n")
    terminal.until("begin 3 end")
    terminal.until("> ")
    terminal.type("half a line\x03")
    terminal.until("leaves")
    terminal.type("\x04")
    assert terminal.status() == 0


def test_lines_are_edited_and_commands_completed() -> None:
    terminal = Terminal("-c", PROGRAM)
    terminal.until("> ")
    terminal.type("/temp\t 0.5\n")
    terminal.until("temperature: 0.5")
    terminal.until("> ")
    terminal.type("\x1b[A\x01\x0b/exit\n")  # up, start of line, kill to its end
    assert terminal.status() == 0


def test_an_interrupt_of_piped_input_ends_with_130() -> None:
    program = PROGRAM.replace("raise SystemExit(", "import sys, types, openbook.cli as cli\nstatus = lambda: (")
    program += (
        "cli.importlib.import_module = lambda name: types.SimpleNamespace(main=lambda args, prog: status())\n"
        "print('ready', flush=True)\nsys.exit(cli.main(['chat', 'x']))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
