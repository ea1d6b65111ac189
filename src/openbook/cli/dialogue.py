"""A conversation in the terminal: lines in, streamed answers out, and commands that begin with a slash.

    line ──▶ command? ──▶ done here
      └────▶ messages ──▶ Chat ──▶ deltas, printed as they come ──▶ messages

The conversation is kept whole; what no longer fits the model's context is left out of what the model sees, loudly.
Ctrl-C stops the answer, not the program. With standard input from a pipe every line is a turn and nothing is echoed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openbook import log
from openbook.chat.blocking import iterate
from openbook.chat.messages import Message
from openbook.chat.protocols import Chat
from openbook.errors import ConfigError, InputError, OpenbookError, UsageError, nearest
from openbook.files import read_json, write_json
from openbook.generate.sampling import Sampling

SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "seed")  # what a person may change in between


@dataclass
class Dialogue:
    """The conversation and the loop over it.

    continues   the model only knows how to go on with a text: messages are joined to one, and an empty line means go on
    begin       the first message that counts: a continued text that came to its end is not continued
    unseen      how many messages the model no longer sees
    """

    chat: Chat
    sampling: Sampling
    system: str = ""
    name: str = ""
    continues: bool = False
    messages: list[Message] = field(default_factory=list)
    begin: int = 0
    unseen: int = 0
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
        if text.strip() or (self.continues and len(self.messages) > self.begin):
            self._turn(text)
        return True

    def _turn(self, text: str) -> None:
        before = len(self.messages)
        self.messages.append(Message.user(self._spaced(text)))
        said: list[str] = []
        thought: list[str] = []
        finish = None
        try:
            for delta in iterate(self.chat.chat(self._counting(), self.sampling, trim=True)):
                self._tell_dropped(delta.dropped)
                if delta.reasoning:
                    log.aside(delta.reasoning)
                    thought.append(delta.reasoning)
                if delta.text and thought and not said:
                    log.aside("\n\n")
                if delta.text:
                    said.append(delta.text)
                finish = delta.finish or finish
                _write(delta.text)
            _write("\n")
        except KeyboardInterrupt:
            _write(" …\n")
            log.note("stopped; what was said so far is kept")
        except BaseException:
            del self.messages[before:]
            _write("\n" if said else "")
            raise
        self.messages.append(Message(role="assistant", content="".join(said), reasoning="".join(thought) or None))
        if self.continues and finish == "stop":
            self.begin, self.unseen = len(self.messages), 0
            log.note("(the text ends here; what you write next begins a new one)")

    def _counting(self) -> list[Message]:
        """The messages that the next answer follows."""
        head = [Message.system(self.system)] if self.system else []
        return head + self.messages[self.begin :]

    def _spaced(self, text: str) -> str:
        """`text`, where texts are joined with a space before it if there would be none."""
        last = self.messages[-1].content if self.continues and len(self.messages) > self.begin else ""
        return f" {text}" if last and text and not last[-1].isspace() and not text[0].isspace() else text

    def _tell_dropped(self, dropped: Sequence[int]) -> None:
        if len(dropped) > self.unseen:
            self.unseen = len(dropped)
            count = f"{self.unseen} message{'s' if self.unseen > 1 else ''} of {len(self.messages)}"
            log.caution(f"the model no longer sees the oldest {count}: the conversation is longer than its context")

    # -------------------------------------------------------------------------------------------- commands

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise UsageError(f"Unknown command '{name}'.{nearest(name, COMMANDS)} Write // where a text begins with /.")
        return COMMANDS[name][1](self, rest.strip())

    def _set(self, name: str, text: str) -> bool:
        old = getattr(self.sampling, name)
        if text:
            kind = float if name in ("temperature", "top_p") else int
            try:
                value: Any = None if name == "seed" and text == "None" else kind(text)
            except ValueError:
                raise UsageError(f"/{name.replace('_', '-')} takes a number: got '{text}'. It stays {old}.") from None
            self.sampling = replace(self.sampling, **{name: value})  # refuses what is out of range
        log.note(f"{name.replace('_', ' ')}: {getattr(self.sampling, name)}")
        return True

    def _system(self, text: str) -> bool:
        self.system = text
        log.note(f"system message: {text}" if text else "system message: none")
        return True

    def _reset(self, _: str) -> bool:
        self.messages, self.begin, self.unseen = [], 0, 0
        log.note("a new conversation")
        return True

    def _retry(self, _: str) -> bool:
        if len(self.messages) < 2:
            raise UsageError("There is no answer yet to give again.")
        asked = self.messages[-2].content or ""
        self._take_back()
        self._turn(asked)
        return True

    def _undo(self, _: str) -> bool:
        if len(self.messages) < 2:
            raise UsageError("There is nothing to take back.")
        self._take_back()
        log.note(f"the last turn is taken back; {len(self.messages)} messages are left")
        return True

    def _take_back(self) -> None:
        del self.messages[-2:]
        self.begin = min(self.begin, len(self.messages))
        self.unseen = min(self.unseen, len(self.messages))

    def _save(self, text: str) -> bool:
        if not text:
            raise UsageError("/save needs a file name.")
        settings = {name: getattr(self.sampling, name) for name in SETTINGS}
        messages = [message.as_dict() for message in self.messages]
        record = {"model": self.name, "system": self.system, "settings": settings, "messages": messages}
        write_json(Path(text).expanduser(), record)
        log.note(f"saved {len(self.messages)} messages to {text}")
        return True

    def _load(self, text: str) -> bool:
        if not text:
            raise UsageError("/load needs a file name.")
        self.system, self.messages = _saved(Path(text).expanduser())
        self.begin = self.unseen = 0
        log.note(f"loaded {len(self.messages)} messages from {text}")
        return True

    def _show(self, _: str) -> bool:
        lines = [f"{name.replace('_', '-')}: {getattr(self.sampling, name)}" for name in SETTINGS]
        seen = f", {self.unseen} no longer seen by the model" if self.unseen else ""
        lines += [f"system: {self.system or 'none'}", f"messages: {len(self.messages)}{seen}"]
        log.note("\n".join([f"model: {self.name}", *lines]))
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
    try:
        return system, [Message.of(message) for message in messages]
    except InputError as error:
        raise ConfigError(f"'{path}' is not a saved conversation: {error}") from error


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
