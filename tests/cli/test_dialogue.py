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
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from openbook.cli.dialogue import COMMANDS, Dialogue, Message, Settings
from openbook.errors import ConfigError, InputError, UsageError


class Echo:
    """Answers with how many messages it sees and the last one; a token is a word."""

    continues = False

    def __init__(self, context: int | None = None) -> None:
        self.context = context
        self.seen: list[Sequence[Message]] = []

    def check(self, settings: Settings) -> None:
        if settings.temperature < 0:
            raise InputError("`temperature` must be at least 0.")

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[str]:  # noqa: ARG002
        if self.context is not None and self.count(messages) > self.context:
            raise InputError(f"{self.count(messages)} tokens do not fit {self.context}.")
        self.seen.append(list(messages))
        yield f"{len(messages)}: "
        yield messages[-1]["content"]


def talk(lines: Sequence[str], monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[Dialogue, int]:
    data = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")))
    monkeypatch.setattr(sys, "stdin", data)
    dialogue = Dialogue(options.pop("speaker", Echo()), **options)  # type: ignore[arg-type]
    return dialogue, dialogue.run()


def test_turns_remember_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    dialogue, status = talk(["hello", "", "again \\", "and again", "//not a command"], monkeypatch)
    assert status == 0
    assert capsys.readouterr().out == "1: hello\n3: again \nand again\n5: /not a command\n"
    assert [m["role"] for m in dialogue.messages] == ["user", "assistant"] * 3


def test_a_speaker_that_continues_also_goes_on_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Echo()
    speaker.continues = True
    dialogue, _ = talk(["once", ""], monkeypatch, speaker=speaker)
    assert [m["content"] for m in dialogue.messages] == ["once", "1: once", "", "3: "]


def test_context_is_trimmed_loudly_and_the_conversation_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = Echo(context=12)
    dialogue, _ = talk(["one two three", "four five", "six"], monkeypatch, speaker=speaker, system="be kind")
    said = capsys.readouterr().err
    assert "no longer sees the oldest 2 messages of 3: its context holds 12 tokens" in said
    assert len(dialogue.messages) == 6
    assert all(seen[0]["content"] == "be kind" for seen in speaker.seen), "the system message stays"
    assert all(speaker.count(seen) <= 12 for seen in speaker.seen)
    assert len(speaker.seen[0]) == 2


def test_one_message_that_is_too_long_is_an_error_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue, status = talk(["a", "word " * 20, "b"], monkeypatch, speaker=Echo(context=10))
    assert status == 1, "input from a pipe could not all be answered"
    assert "20 tokens do not fit 10" in capsys.readouterr().err
    assert [m["content"] for m in dialogue.messages if m["role"] == "user"] == ["a", "b"]


def test_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/temperature 0", "/top-k 5", "/seed 3", "/seed None", "/max-tokens", "/settings"]
    dialogue, status = talk(lines, monkeypatch)
    assert status == 0
    assert dialogue.settings == Settings(temperature=0.0, top_k=5)
    said = capsys.readouterr().err
    assert "temperature: 0.0" in said
    assert "max tokens: 256" in said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temprature 1", "Did you mean '/temperature'"),
        ("/temperature hot", "takes a number: got 'hot'. It stays 0.8"),
        ("/temperature -1", "at least 0"),
        ("/save", "needs a file name"),
        ("/load /nowhere/x.json", "nowhere"),
        ("/retry", "no answer yet"),
        ("/undo", "nothing to take back"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_wrong_lines_change_nothing(
    line: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogue, status = talk([line, "on"], monkeypatch)
    assert says in capsys.readouterr().err
    assert dialogue.settings == Settings()
    assert len(dialogue.messages) == 2
    assert status == 1


def test_retry_undo_reset_system_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogue, _ = talk(["a", "/retry", "b", "/undo", "/exit", "never"], monkeypatch)
    assert [m["content"] for m in dialogue.messages] == ["a", "1: a"]
    dialogue, _ = talk(["/system be kind", "a", "/reset", "/system", "b"], monkeypatch)
    assert [m["content"] for m in dialogue.messages] == ["b", "1: b"]


def test_save_and_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    first, _ = talk(["/system be kind", "hellö", f"/save {file}"], monkeypatch)
    assert json.loads(file.read_text("utf-8"))["messages"][0] == {"role": "user", "content": "hellö"}
    second, _ = talk([f"/load {file}", "more"], monkeypatch)
    assert second.system == "be kind"
    assert second.messages[:2] == first.messages
    assert len(second.messages) == 4


@pytest.mark.parametrize("text", ["[]", "{}", '{"messages": [3]}', '{"messages": [{"role": "cat", "content": ""}]}'])
def test_a_file_that_is_no_conversation(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    dialogue = Dialogue(Echo(), messages=[{"role": "user", "content": "kept"}])
    with pytest.raises(ConfigError):
        dialogue.take(f"/load {tmp_path}/x.json")
    assert dialogue.messages == [{"role": "user", "content": "kept"}]


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    Dialogue(Echo()).take("/help")
    said = capsys.readouterr().err
    assert all(command in said for command in COMMANDS)
    with pytest.raises(UsageError):
        Dialogue(Echo()).take("/helpp")


# ------------------------------------------------------------------------------------------------ at a real terminal

PROGRAM = """
import time
from openbook.cli.dialogue import Dialogue
class Slow:
    context, continues = None, False
    def check(self, settings): pass
    def count(self, messages): return 0
    def answer(self, messages, settings):
        yield f"begin {len(messages)} "
        if messages[-1]["content"] == "slow":
            time.sleep(60)
        yield "end"
raise SystemExit(Dialogue(Slow()).run())
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
