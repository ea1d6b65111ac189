"""What a tokenizer's chat template can do, and what it takes to ask and to understand: prompts with tools in them,
grammars that hold an answer to their schemas, readers of what comes.

    tools        given to the template, unless they must not be used (`none`): a model calls what it sees
    auto         any text, or what `sampling.grammar` describes; but once a call opens, its arguments are valid
    required     one call at least, of the named tool where there is one
    a schema     that cannot be enforced is an InputError for a tool that is `strict` or required; the arguments of
                 other tools are then any JSON object
    reasoning    is free: grammars begin to hold where it ends

Without the library that enforces grammars, `auto` hopes for the best where no tool is strict; all else is MissingExtra.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from openbook.chat.dialect import Dialect, Probe, Reasoning, as_read
from openbook.chat.hearing import Hearing
from openbook.chat.messages import Message, Tool, ToolUse
from openbook.chat.protocols import FREELY, NOTHING
from openbook.errors import InputError, Refusal
from openbook.generate.constraints import available, fault
from openbook.generate.grammars import Calls, Grammar, Json, Mark, Marks, Reasoned, Schema
from openbook.generate.sampling import Sampling
from openbook.text import Tokenizer

RESERVED = ("add_generation_prompt", "continue_final_message", "messages", "self", "tools")
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ENDING = 48  # ids of a prompt in which the marks of reasoning are looked for
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}  # of a tool without parameters
SILENT = frozenset(("type", "properties", "required", "title", "description", "$schema"))  # on what else there may be

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, and how its answer is written and read."""

    ids: list[int]
    sampling: Sampling
    dropped: tuple[int, ...] = ()
    dialect: Dialect | None = None
    reasoning: Reasoning | None = None
    inside: bool = False  # the answer begins within reasoning
    names: frozenset[str] = frozenset()  # of the tools
    shown: frozenset[int] = frozenset()  # special tokens that are parts of marks
    once: bool = False  # one call at most
    salt: bytes = b""

    def hearing(self, choice: int) -> Hearing:
        """The reader of choice number `choice`."""
        new_id = partial(_new_id, self.salt, choice, self.dialect.id_length if self.dialect else None)
        return Hearing(self.dialect, self.reasoning, inside=self.inside, names=self.names, new_id=new_id)


class Manners:
    """What the chat templates of a tokenizer can do: they are asked once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._dialects: dict[bool, Dialect | Refusal] = {}
        self._reasoning: dict[bool, Reasoning | None] = {}

    def dialect(self, tools: bool) -> Dialect:
        """How the template used with (or without) tools writes calls; a Refusal where it does not."""
        if tools not in self._dialects:
            try:
                self._dialects[tools] = self._probe(tools).dialect()
            except Refusal as refusal:
                self._dialects[tools] = refusal
        found = self._dialects[tools]
        if isinstance(found, Refusal):
            raise Refusal(str(found))
        return found

    def reasoning(self, tools: bool) -> Reasoning | None:
        """The marks of reasoning, where the template knows it."""
        if tools not in self._reasoning:
            self._reasoning[tools] = self._probe(tools).reasoning() if self._tokenizer.templates else None
        return self._reasoning[tools]

    def _probe(self, tools: bool) -> Probe:
        tokenizer = self._tokenizer
        if not tokenizer.templates:
            raise Refusal("This model has no chat template, so it does not call tools. Describe them in the text.")
        name = "tool_use" if tools and "tool_use" in tokenizer.templates else "default"
        shown = [{"type": "function", "function": {"name": "probe", "description": "", "parameters": EMPTY}}]

        def render(messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
            return tokenizer.render_chat(messages, **({"tools": shown} if tools else {}) | more)

        stops = [str(tokenizer.token(number)) for number in tokenizer.stops]
        return Probe(render, tokenizer.templates.get(name, ""), tokenizer.specials, stops)

    # -- prompts ------------------------------------------------------------------------------------------------------

    def ids(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), variables: Mapping[str, Any] = NOTHING
    ) -> list[int]:
        """The prompt of a conversation. Errors as in `Tokenizer.chat`; Refusal for calls that no template writes."""
        for name in variables:
            if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
                raise InputError(f"`variables` has the name {name!r:.60}: use words other than {', '.join(RESERVED)}.")
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            dialect = self.dialect(bool(tools))
            values = as_read(messages, dialect, partial(_fitted, dialect.id_length))
        else:
            values = [message.as_dict() for message in messages]
        return self._tokenizer.chat(values, tools=[_shown(tool) for tool in tools] or None, **variables)

    # -- answers ------------------------------------------------------------------------------------------------------

    def asked(
        self,
        ids: list[int],
        dropped: tuple[int, ...],
        sampling: Sampling,
        tools: Sequence[Tool] = (),
        use: ToolUse = FREELY,
    ) -> Asked:
        """How the answer to a prompt with these tools is written and read."""
        reasoning, inside = self._state(ids, bool(tools))
        dialect = self.dialect(True) if tools else None
        grammar = sampling.grammar if dialect is None else self._calls(dialect, tools, use, sampling.grammar)
        if grammar is not None and reasoning is not None:
            opening, closing = self._mark(reasoning.opening), self._mark(reasoning.closing)
            grammar = Reasoned(opening=opening, closing=closing, begun=inside, then=grammar)
        if grammar is not sampling.grammar:
            sampling = replace(sampling, grammar=grammar)
        marks = "" if reasoning is None else reasoning.opening + reasoning.closing
        if dialect is not None:
            marks += dialect.start + dialect.opens + dialect.between + dialect.behind
            marks += dialect.closes + dialect.separator + dialect.end
        seed = secrets.token_bytes(8) if sampling.seed is None else str(sampling.seed).encode()
        return Asked(
            ids=ids,
            sampling=sampling,
            dropped=dropped,
            dialect=dialect,
            reasoning=reasoning,
            inside=inside,
            names=frozenset(tool.name for tool in tools),
            shown=frozenset(piece for piece in self._mark(marks) if isinstance(piece, int)),
            once=dialect is not None and not (use.parallel and dialect.many),
            salt=blake2b(seed + repr(ids).encode(), digest_size=16).digest(),
        )

    def _state(self, ids: list[int], tools: bool) -> tuple[Reasoning | None, bool]:
        """The marks of reasoning, None where the prompt has closed it already; whether the prompt has opened it."""
        reasoning = self.reasoning(tools)
        if reasoning is None:
            return None, False
        end = self._tokenizer.decode(ids[-ENDING:], skip_specials=False).rstrip()
        if end.endswith(reasoning.closing) and end.removesuffix(reasoning.closing).rstrip().endswith(reasoning.opening):
            return None, False
        return reasoning, end.endswith(reasoning.opening)

    def _calls(
        self, dialect: Dialect, tools: Sequence[Tool], use: ToolUse, otherwise: Grammar | None
    ) -> Grammar | None:
        required = use.mode == "required"
        if not required and otherwise is None and not available() and not any(tool.strict for tool in tools):
            return None
        marks = Marks(
            start=self._mark(dialect.start),
            opens=self._mark(dialect.opens),
            between=self._mark(dialect.between),
            behind=self._mark(dialect.behind),
            closes=self._mark(dialect.closes),
            separator=self._mark(dialect.separator),
            end=self._mark(dialect.end),
            keys=dialect.keys,
            id_key=dialect.id_key,
            id_length=dialect.id_length,
        )
        wanted = [tool for tool in tools if use.name in (None, tool.name)]
        return Calls(
            functions=tuple((tool.name, _arguments(tool, required)) for tool in wanted),
            marks=marks,
            required=required,
            parallel=use.parallel and dialect.many,
            otherwise=None if required else otherwise,
        )

    def _mark(self, text: str) -> Mark:
        """A mark as texts and ids of special tokens."""
        specials = self._tokenizer.specials
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)"
        return tuple(specials.get(piece, piece) for piece in re.split(f"({names})", text) if piece)


def check_tools(tools: Sequence[Tool], use: ToolUse) -> tuple[Tool, ...]:
    """The tools that the model is to see. InputError for names that cannot be, and for one that is not there."""
    names = [tool.name for tool in tools]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"The name of a tool is 1 to 64 letters, digits, `_`, `-` and `.`: got {name!r:.80}.")
        if names.count(name) > 1:
            raise InputError(f"Two tools are named {name!r}: give each a name of its own.")
    if use.mode == "required" and not tools:
        raise InputError("A call is required and there are no `tools`: give at least one.")
    if use.name is not None and use.name not in names:
        raise InputError(f"The tool {use.name!r}, which must be called, is not there. There are: {', '.join(names)}.")
    return () if use.mode == "none" else tuple(tools)


def _shown(tool: Tool) -> dict[str, Any]:
    """A tool as templates read it."""
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _arguments(tool: Tool, required: bool) -> Schema | Json:
    """What the arguments of a tool must be."""
    parameters = {"type": "object", **tool.parameters}
    if not parameters.get("properties") and not parameters.get("required") and parameters.keys() <= SILENT:
        parameters |= EMPTY | {"type": parameters["type"]}
    try:
        if parameters["type"] != "object":
            raise InputError(f"the arguments of a tool are an object: got type {parameters['type']!r:.60} at #/type.")
        schema = Schema.of(parameters)
        if available() and (reason := fault(schema)):
            raise InputError(reason)
        return schema
    except InputError as error:
        if not tool.strict and not required:
            return Json()
        hint = "" if required else " Or leave out `strict`: then any JSON object will do."
        raise InputError(f"`parameters` of the tool {tool.name!r} cannot be enforced: {error}{hint}") from error


def _new_id(salt: bytes, choice: int, length: int | None, index: int) -> str:
    """An id for call number `index`: the same for the same request under the same seed."""
    return _letters(salt + f"{choice}:{index}".encode(), length)


def _fitted(length: int | None, number: str) -> str:
    """An id of the shape that the template asks for, in place of one that another model gave."""
    if length is None or (len(number) == length and number.isascii() and number.isalnum()):
        return number
    return _letters(number.encode(errors="replace"), length)


def _letters(seed: bytes, length: int | None) -> str:
    if length is None:
        return f"call_{blake2b(seed, digest_size=12).hexdigest()}"
    number, letters = int.from_bytes(blake2b(seed, digest_size=64).digest()), ""
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        letters += ALPHABET[digit]
    return letters
