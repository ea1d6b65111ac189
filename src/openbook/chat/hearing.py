"""What a model writes, told apart as it comes: reasoning, text, calls of tools.

    reasoning? ( text | call )*

The reader goes by characters, so how the text is cut into pieces cannot matter: whatever the pieces, what is heard,
joined, is the same. What may still become a mark is held back, white space before a mark included; it is dropped where
the mark comes, and is text where it does not. White space inside marks may be more or less than the template writes.

What goes wrong: a call without a name, or that is no JSON up to its arguments, or, where nothing but JSON marks a call,
one of an unknown name, is text, its marks included. From the first character of its arguments on a call is a call:
arguments are given as they are written, up to the brace that closes them, and what follows instead of the closing mark
is text. Output that ends early leaves arguments that end early.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, replace

from openbook.chat.dialect import Dialect, Reasoning
from openbook.chat.marks import SPACE, Broken, ending, fits, id_of, object_of, string_of
from openbook.chat.messages import ToolCallPart

LONGEST_HEAD = 4096  # characters from the mark to the arguments; more is text
LONGEST_NAME = 128
LONGEST_SPACE = 64  # white space that is held back

Reader = Generator[None, str, str]  # takes characters, "" at the end


@dataclass(frozen=True)
class Heard:
    """What one piece of output makes certain."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallPart, ...] = ()


class Hearing:
    """The reader of one answer. `feed` a piece of it, `finish` at its end.

    dialect    how calls are written; None: there are none
    reasoning  its marks; None: there is none
    inside     whether the prompt ended with the mark that opens reasoning
    names      of the tools
    new_id     an id for call number i
    """

    def __init__(
        self,
        dialect: Dialect | None = None,
        reasoning: Reasoning | None = None,
        *,
        inside: bool = False,
        names: Collection[str] = (),
        new_id: Callable[[int], str] = lambda index: f"call_{index}",
    ) -> None:
        self._dialect = dialect
        self._reasoning = reasoning
        self.thinking = inside and reasoning is not None
        self.begun = 0  # calls
        self.completed = 0
        self._names = names
        self._ids: set[str] = set()
        self._new_id = new_id
        self._again: deque[str] = deque()  # characters to be read once more
        self._ended = False
        self._raw: list[str] = []  # what was read of a call that may be none
        self._text: list[str] = []
        self._thought: list[str] = []
        self._parts: list[ToolCallPart] = []
        self._lead = False  # white space that comes now is of no meaning
        self._run = self._answer()
        next(self._run)

    def feed(self, piece: str) -> Heard:
        """What `piece` makes certain."""
        if self._dialect is None and self._reasoning is None:
            return Heard(text=piece)
        for character in piece:
            self._run.send(character)
        return self._take()

    def finish(self) -> Heard:
        """What was held back: the answer is over."""
        self._ended = True
        self._run.send("")
        return self._take()

    def _take(self) -> Heard:
        parts: list[ToolCallPart] = []
        for part in self._parts:
            if parts and not part.name and parts[-1].index == part.index:
                parts[-1] = replace(parts[-1], arguments=parts[-1].arguments + part.arguments)
            else:
                parts.append(part)
        heard = Heard("".join(self._text), "".join(self._thought), tuple(parts))
        for taken in (self._text, self._thought, self._parts):
            taken.clear()
        return heard

    # -- the whole ----------------------------------------------------------------------------------------------------

    def _answer(self) -> Generator[None, str, None]:
        if self._reasoning is not None:
            if not self.thinking:
                self.thinking = bool((yield from self._find([self._reasoning.opening], None)))
            if self.thinking:
                self._lead = True
                yield from self._find([self._reasoning.closing], self._thought)
                self.thinking, self._lead = False, True
        while not self._at_end:
            if self._dialect is None:
                self._put((yield from self._next()), self._text)
            elif self._dialect.bare:
                yield from self._bare(self._dialect)
            elif (yield from self._find([self._dialect.start + self._dialect.opens], self._text)):
                yield from self._calls(self._dialect)
        yield

    def _bare(self, dialect: Dialect) -> Reader:
        """The whole answer where a call is a JSON object and nothing else: only its first character can begin one."""
        yield from self._call(dialect)
        while not self._at_end:
            self._put((yield from self._next()), self._text)
        return ""

    def _calls(self, dialect: Dialect) -> Reader:
        """One call after the other, when the first was opened."""
        while (yield from self._call(dialect)):
            self._lead = True
            again = (dialect.separator + dialect.opens).strip() or "{"  # objects, one on each line
            end = dialect.end.strip()
            if again != (yield from self._find([again, end] if end else [again], None)):
                return ""
            if again == "{":
                self._back(again)
        return ""

    def _call(self, dialect: Dialect) -> Generator[None, str, bool]:
        """A call, when its mark was read; False: it is none, and what was read is text."""
        begun = self.begun
        if dialect.bare:
            self._raw = []
        try:
            yield from self._named(dialect) if dialect.keys is None else self._object(dialect, dialect.keys)
        except Broken:
            if self.begun == begun:
                held, self._raw = "".join(self._raw), []
                mark = "" if dialect.bare else dialect.start + dialect.opens
                self._put(held[: len(mark)], self._text)
                self._back(held[len(mark) :])
                return False
            if not self._writing:
                self._back("".join(self._raw))
        self._raw = []
        if dialect.closes.strip():
            yield from self._find([dialect.closes], None)
        return True

    # -- characters ---------------------------------------------------------------------------------------------------

    @property
    def _at_end(self) -> bool:
        return self._ended and not self._again

    def _next(self) -> Reader:
        """The next character; "" at the end."""
        if self._again:
            return self._again.popleft()
        return "" if self._ended else (yield)

    def _back(self, text: str) -> None:
        self._again.extendleft(reversed(text))

    def _put(self, text: str, into: list[str]) -> None:
        if self._lead:
            text = text.lstrip()
            self._lead = not text
        into.append(text)

    def _find(self, marks: list[str], into: list[str] | None) -> Reader:
        """Reads up to one of `marks`, which it returns; what stands before it goes where `into` says.

        If that is nowhere, the mark must come at once: if it does not, nothing was read and "" is returned. "" also
        when the text ends before a mark.
        """
        held = ""
        while marks:
            character = yield from self._next()
            held += character
            while held and character:
                found = [(mark, fits(mark, held)) for mark in marks]
                if whole := [mark for mark, one in found if one]:
                    self._raw = list(held)
                    return whole[0]
                if any(one is None for _, one in found) and (held.strip() or len(held) < LONGEST_SPACE):
                    break
                if into is None:
                    self._back(held)
                    return ""
                self._put(held[0], into)
                held = held[1:]
            if not character:
                if into is None:
                    self._back(held)
                else:
                    self._put(held, into)
                return ""
        return ""

    # -- calls --------------------------------------------------------------------------------------------------------

    def _get(self) -> Reader:
        """The next character of what may be a call."""
        character = yield from self._next()
        if not character:
            raise Broken
        self._raw.append(character)
        if len(self._raw) > LONGEST_HEAD and not self._writing:
            raise Broken
        return character

    def _visible(self) -> Reader:
        """The next character that is no white space."""
        while (character := (yield from self._get())) in SPACE:
            pass
        return character

    @property
    def _writing(self) -> bool:
        """Whether a call was begun whose arguments are not over."""
        return self.begun > self.completed

    def _open(self, name: str, number: str = "") -> None:
        """The head of a call is certain. The model's own id is taken where it is one, and no earlier call has it."""
        if not number or number in self._ids:
            number = self._new_id(self.begun)
        self._ids.add(number)
        self._parts.append(ToolCallPart(index=self.begun, id=number, name=name))
        self.begun += 1

    def _write(self, text: str) -> None:
        self._parts.append(ToolCallPart(index=self.begun - 1, arguments=text))

    def _arguments(self) -> Reader:
        """The arguments of a call, after their first brace."""
        yield from self._braces("{", self._write)
        self.completed, self._raw = self.begun, []
        return ""

    def _named(self, dialect: Dialect) -> Reader:
        """name, `between`, (id, `behind`,) arguments."""
        name, number = (yield from self._before(dialect.between)), ""
        if not name or not all(one.isalnum() or one in "_-.:/" for one in name):
            raise Broken
        if dialect.behind:
            number = id_of((yield from self._before(dialect.behind)), dialect.id_length)
        if (yield from self._visible()) != "{":
            raise Broken
        self._open(name, number)
        yield from self._arguments()
        return ""

    def _before(self, mark: str) -> Reader:
        """A word and the mark behind it: the word."""
        text = yield from self._visible()
        while not (size := ending(mark, text)):
            text += yield from self._get()
            if len(text) > LONGEST_NAME + len(mark):
                raise Broken
        return text[: len(text) - size].strip()

    def _object(self, dialect: Dialect, keys: tuple[str, str]) -> Reader:
        """{name: …, arguments: …}, with other keys beside them, and in any order if there are marks around it."""
        begun, name, number, held = self.begun, "", "", ""
        if (yield from self._visible()) != "{":
            raise Broken
        character = yield from self._visible()
        while character != "}":
            if character != '"':
                raise Broken
            key = string_of((yield from self._string()))
            if dialect.bare and not name and key != keys[0]:
                raise Broken  # at once: it is an answer in JSON, say, that is wanted as it comes
            if (yield from self._visible()) != ":":
                raise Broken
            character = yield from self._visible()
            if key == keys[1] and name and character == "{" and self.begun == begun:
                self._open(name, number)
                yield from self._arguments()
                character = yield from self._visible()
            else:
                value, character = yield from self._value(character)
                if key == keys[0]:
                    name = self._known(string_of(value), dialect)
                elif key == keys[1]:
                    held = object_of(value)
                elif key == dialect.id_key and self.begun == begun:
                    number = id_of(string_of(value), dialect.id_length)
            if character == ",":
                character = yield from self._visible()
            elif character != "}":
                raise Broken
        if self.begun == begun:
            if not name:
                raise Broken
            self._open(name, number)
            self._write(held or "{}")
            self.completed, self._raw = self.begun, []
        return ""

    def _known(self, name: str, dialect: Dialect) -> str:
        if not name or not name.isprintable() or (dialect.bare and name not in self._names):
            raise Broken
        return name

    def _value(self, first: str) -> Generator[None, str, tuple[str, str]]:
        """A JSON value that begins with `first`, as written, and the character behind it."""
        if first == '"':
            text = yield from self._string()
        elif first in "{[":
            written: list[str] = []
            yield from self._braces(first, written.append)
            text = "".join(written)
        else:
            text, character = first, (yield from self._get())
            while character not in ",}" + SPACE:
                text += character
                character = yield from self._get()
            return text, character if character not in SPACE else (yield from self._visible())
        return text, (yield from self._visible())

    def _string(self) -> Reader:
        """The rest of a JSON string, with its quotes."""
        text, escaped = '"', False
        while True:
            character = yield from self._get()
            text += character
            if character == '"' and not escaped:
                return text
            escaped = character == "\\" and not escaped

    def _braces(self, first: str, sink: Callable[[str], None]) -> Reader:
        """A JSON object or list that begins with `first`, into `sink`, up to the brace that closes it."""
        sink(first)
        depth, quoted, escaped = 1, False, False
        while depth:
            character = yield from self._get()
            sink(character)
            if quoted:
                quoted = character != '"' or escaped
                escaped = character == "\\" and not escaped
            else:
                quoted = character == '"'
                depth += (character in "{[") - (character in "}]")
        return ""
