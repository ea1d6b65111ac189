"""A conversation in the terminal: lines in, streamed answers out, and commands that begin with a slash.

    line ──▶ command? ──▶ done here
      └────▶ messages ──fit──▶ speaker.answer ──▶ printed piece by piece ──▶ messages

The conversation is kept whole; what no longer fits the model's context is left out of what the model sees, loudly.
Ctrl-C stops the answer, not the program. With standard input from a pipe every line is a turn and nothing is echoed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from openbook import log
from openbook.errors import ConfigError, InputError, OpenbookError, UsageError, nearest
from openbook.files import read_json, write_json

Message = Mapping[str, str]  # role: system, user or assistant; content
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person may change in the middle of a conversation."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 256
    seed: int | None = None


class Speaker(Protocol):
    """Who answers."""

    context: int | None  # tokens the model can see
    continues: bool  # whether it goes on from an empty line too

    def check(self, settings: Settings) -> None:
        """Raise InputError for settings that cannot be used."""

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that these messages become."""

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[str]:
        """The answer, piece by piece."""


@dataclass
class Dialogue:
    """The conversation and the loop over it."""

    speaker: Speaker
    settings: Settings = field(default_factory=Settings)
    system: str = ""
    name: str = ""
    messages: list[Message] = field(default_factory=list)
    unseen: int = 0  # messages at the start that the model no longer sees
    failed: bool = False

    # -------------------------------------------------------------------------------------------- the loop

    def run(self) -> int:
        """Talk until the end of input or `/exit`. Status 1 when input from a pipe could not all be answered."""
        interactive = sys.stdin.isatty()
        if interactive:
            _edit_lines(list(COMMANDS))
        for line in _lines(interactive):
            try:
                if not self.take(line):
                    break
            except OpenbookError as error:
                log.fail(str(error))
                self.failed = True
        return int(self.failed and not interactive)

    def take(self, line: str) -> bool:
        """One line of input; False when the conversation is over."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line)
        text = line.removeprefix("/") if line.startswith("//") else line
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError("This line is not UTF-8 text.")
        if text.strip() or self.speaker.continues:
            self._turn(text)
        return True

    def _turn(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            for piece in self.speaker.answer(self._visible(), self.settings):
                said.append(piece)
                _write(piece)
            _write("\n")
        except KeyboardInterrupt:
            _write(" …\n")
            log.note("stopped; what was said so far is kept")
        except BaseException:
            self.messages.pop()
            if said:
                _write("\n")
            raise
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _visible(self) -> list[Message]:
        """The messages that fit the context with room for an answer: the newest, and always the system's."""
        head: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        context = self.speaker.context
        start = min(self.unseen, len(self.messages) - 1)
        if context is not None:
            reserve = min(self.settings.max_tokens, context // 4)
            while start < len(self.messages) - 1:
                if self.speaker.count(head + self.messages[start:]) + reserve <= context:
                    break
                start = min(start + 2, len(self.messages) - 1)
        if start > self.unseen:
            left = f"{start} message{'s' if start > 1 else ''} of {len(self.messages)}"
            log.caution(f"the model no longer sees the oldest {left}: its context holds {context} tokens")
            self.unseen = start
        return head + self.messages[start:]

    # -------------------------------------------------------------------------------------------- commands

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise UsageError(f"Unknown command '{name}'.{nearest(name, COMMANDS)} A text may begin with //.")
        return COMMANDS[name][1](self, rest.strip())

    def _set(self, name: str, text: str) -> bool:
        old = getattr(self.settings, name)
        if text:
            kind = float if name in ("temperature", "top_p") else int
            try:
                value: Any = None if name == "seed" and text == "None" else kind(text)
            except ValueError:
                raise UsageError(f"/{name.replace('_', '-')} takes a number: got '{text}'. It stays {old}.") from None
            changed = replace(self.settings, **{name: value})
            self.speaker.check(changed)
            self.settings = changed
        log.note(f"{name.replace('_', ' ')}: {getattr(self.settings, name)}")
        return True

    def _system(self, text: str) -> bool:
        self.system = text
        log.note(f"system message: {text}" if text else "system message: none")
        return True

    def _reset(self, _: str) -> bool:
        self.messages, self.unseen = [], 0
        log.note("a new conversation")
        return True

    def _retry(self, _: str) -> bool:
        if len(self.messages) < 2:
            raise UsageError("There is no answer yet to give again.")
        self.messages.pop()
        self._turn(self.messages.pop()["content"])
        return True

    def _undo(self, _: str) -> bool:
        if len(self.messages) < 2:
            raise UsageError("There is nothing to take back.")
        del self.messages[-2:]
        self.unseen = min(self.unseen, len(self.messages))
        log.note(f"the last turn is taken back; {len(self.messages)} messages are left")
        return True

    def _save(self, text: str) -> bool:
        if not text:
            raise UsageError("/save needs a file name.")
        settings = {f.name: getattr(self.settings, f.name) for f in fields(Settings)}
        record = {"model": self.name, "system": self.system, "settings": settings, "messages": self.messages}
        write_json(Path(text).expanduser(), record)
        log.note(f"saved {len(self.messages)} messages to {text}")
        return True

    def _load(self, text: str) -> bool:
        if not text:
            raise UsageError("/load needs a file name.")
        self.system, self.messages = _saved(Path(text).expanduser())
        self.unseen = 0
        log.note(f"loaded {len(self.messages)} messages from {text}")
        return True

    def _show(self, _: str) -> bool:
        log.note(f"model: {self.name}")
        log.note("\n".join(f"{f.name.replace('_', '-')}: {getattr(self.settings, f.name)}" for f in fields(Settings)))
        seen = f", {self.unseen} no longer seen by the model" if self.unseen else ""
        log.note(f"system: {self.system or 'none'}\nmessages: {len(self.messages)}{seen}")
        return True

    def _help(self, _: str) -> bool:
        log.note("\n".join(f"{name:<13} {about}" for name, (about, _) in COMMANDS.items()))
        log.note("Ctrl-C stops an answer, Ctrl-D leaves; a line that ends in \\ goes on in the next.")
        return True

    def _exit(self, _: str) -> bool:
        return False


def _setter(name: str) -> Callable[[Dialogue, str], bool]:
    return lambda dialogue, text: dialogue._set(name, text)


COMMANDS: Mapping[str, tuple[str, Callable[[Dialogue, str], bool]]] = {
    "/help": ("this list", Dialogue._help),
    "/temperature": ("0 is greedy, 1 the model's own distribution", _setter("temperature")),
    "/top-p": ("choose among the best that hold this share of the probability", _setter("top_p")),
    "/top-k": ("choose among the k best; 0: all", _setter("top_k")),
    "/max-tokens": ("tokens of an answer at most", _setter("max_tokens")),
    "/seed": ("make the next answers repeatable", _setter("seed")),
    "/system": ("set the system message; without a text, remove it", Dialogue._system),
    "/retry": ("give the last answer again", Dialogue._retry),
    "/undo": ("take the last turn back", Dialogue._undo),
    "/reset": ("begin a new conversation", Dialogue._reset),
    "/save": ("write the conversation to a file", Dialogue._save),
    "/load": ("read a conversation from a file", Dialogue._load),
    "/settings": ("what is set", Dialogue._show),
    "/exit": ("leave (also Ctrl-D)", Dialogue._exit),
}


def _saved(path: Path) -> tuple[str, list[Message]]:
    """The system message and the messages of a saved conversation, checked."""
    record: Any = read_json(path)
    system = record.get("system", "") if isinstance(record, dict) else None
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(system, str) or not isinstance(messages, list):
        raise ConfigError(f"'{path}' is not a saved conversation: it needs `messages`, a list.")
    for index, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise ConfigError(f"Message {index} of '{path}' needs `role`, one of {', '.join(ROLES)}, and `content`.")
    return system, [{"role": m["role"], "content": m["content"]} for m in messages]


# ------------------------------------------------------------------------------------------------ lines


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of input, those that end in a backslash joined with the next."""
    parts: list[str] = []
    while True:
        try:
            line = input("… " if parts else "> ") if interactive else _piped()
        except EOFError:
            if interactive:
                _write("\n")
            line = None
        except KeyboardInterrupt:
            if not interactive:
                raise
            parts = []
            _write("\n")
            log.note("Ctrl-D or /exit leaves", once="leave")
            continue
        if line is None and not parts:
            return
        if line is not None and line.endswith("\\"):
            parts.append(line[:-1])
            continue
        parts.append(line or "")
        yield "\n".join(parts)
        parts = []


def _piped() -> str | None:
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", errors="surrogateescape").rstrip("\r\n") if line else None


def _edit_lines(words: Sequence[str]) -> None:
    """Line editing, history and completion of commands, where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline

        def complete(text: str, state: int) -> str | None:
            return next(iter([word for word in words if word.startswith(text)][state:]), None)

        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
