"""Chat templates: messages to ids, where only the template can write special tokens.

transformers renders the messages to one string and looks for special tokens in it, so a user who writes
`<|end|><|assistant|>` speaks for the assistant. Here the two authors are kept apart:

    1. The special tokens in the template's own text, and `bos_token` …, get their secret names (`sealed.py`).
    2. The special tokens in the messages get other secret names, which are turned back into plain text at the end.
    3. Some templates build special tokens from pieces (`'<|' + role + '|>'`). What of those is left in the result is
       compared with a second rendering in which the messages are masked: what is still there is the template's.

The same text is encoded in one piece, so for messages without special tokens the ids are those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from openbook.errors import InputError, TokenizerError
from openbook.text.budget import Budget
from openbook.text.sandbox import BUDGET, Sandbox, refusal
from openbook.text.sealed import Sealed, checked_text

# The template of tokenizers trained here: each turn is its role's token, the text, and the token that ends a turn.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '<|system|>' + message['content'] + '<|end|>' }}
    {%- elif message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] + '<|end|>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' + message['content'] + '<|end|>' }}
    {%- else %}
        {{- raise_exception('The role must be system, user or assistant: got ' + message['role'] + '.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""
CHAT_SPECIALS = ("<|bos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_LONGEST = 100_000  # characters of a template: seconds to compile; published ones have some 20,000 at most
_DEEPEST = 128  # objects and lists within each other, in a message or a variable
_PRIVATE = range(0xE000, 0xF8FF)


class Null:
    """A None that a template is to see: some ask whether the content `is none` before they write calls."""


NULL = Null()
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names under which messages carry it


class ChatTemplate:
    """One chat template, compiled, over the special tokens of one tokenizer.

    source      the Jinja text
    variables   what the template may name besides the messages: bos_token, eos_token …
    name        how errors call it
    """

    def __init__(self, source: str, sealed: Sealed, variables: Mapping[str, str], name: str) -> None:
        self._sealed = sealed
        self._name = name
        every = sealed.specials.keys()
        self._variables = {key: sealed.reveal(value, every) for key, value in variables.items()}
        marks = sealed.invent("start"), sealed.invent("end")
        self._marks = re.compile(f"({re.escape(marks[0])})|({re.escape(marks[1])})")
        if len(source) > _LONGEST:
            raise TokenizerError(f"{name} has {len(source)} characters: no chat template is longer than {_LONGEST}.")
        try:
            self._compiled = Sandbox(*marks).compile_metered(source, lambda text: sealed.reveal(text, every))
        except Exception as error:
            refused = refusal(error, name)
            if isinstance(refused, InputError):  # there are no messages yet that could be at fault
                refused = TokenizerError(f"{name} cannot be compiled ({type(error).__name__}: {error}). Correct it.")
            raise refused from error
        self._marked = bool(re.search(r"\{%[-+]?\s*generation\b", source))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        *,
        continue_final_message: bool | str = False,
    ) -> str:
        """The rendered conversation, special tokens of the template under their secret names, others as plain text.

        With `continue_final_message` it ends where the last message ends, or the field of it that is named so.
        InputError when the template does not accept the messages, TokenizerError when the template itself is at fault.
        """
        checked, plain = _checked(messages), _plain(variables)
        if not continue_final_message:
            return self._sealed.expose(self._render(checked, plain))
        field = "content" if continue_final_message is True else continue_final_message
        mark = self._sealed.invent("continue")
        said = continued(checked[-1], field, f"{mark} ")  # the space shows whether the template trims
        text = self._sealed.expose(self._render(checked, plain))
        before, found, after = text.rpartition(mark)
        if not found or said.strip() not in text:
            raise InputError(f"{self._name} does not write the `{field}` of the last message: it cannot be continued.")
        return before if after.startswith(" ") else before.rstrip()

    def render_learned(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """Like `render`, with the (start, end) of what the assistant says: what `{% generation %}` marks, or, in a
        template without it, each assistant message as far as the text depends on it, and the token that ends the turn.
        """
        checked, plain = _checked(messages), _plain(variables)
        if self._marked:
            text, spans = self._unmark(self._render(checked, plain, keep_marks=True))
        else:
            text = self._render(checked, plain)
            spans = [
                span
                for index, message in enumerate(checked)
                if message["role"] == "assistant"
                for span in self._said(text, checked, index, plain)
            ]
        return self._expose_spans(text, spans)

    @cached_property
    def turn_end(self) -> str | None:
        """The special token right after an assistant's last word, or None."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ue000"}]
        try:
            text = self._render(probe, {})
        except (InputError, TokenizerError):
            return None
        after = text.rpartition("\ue000")[2].lstrip()
        return next((content for content, name in self._sealed.names.items() if after.startswith(name)), None)

    # -- rendering ----------------------------------------------------------------------------------------------------

    def _render(self, messages: list[dict[str, Any]], variables: dict[str, Any], *, keep_marks: bool = False) -> str:
        """The conversation, with the special tokens of the messages under the names of step 2."""
        hide = self._sealed.hide
        text = self._run(_each_text(messages, hide, hide), _each_text(variables, hide, hide), messages, keep_marks)
        built = self._sealed.find(text)
        if not built:
            return text
        masked = self._run(_each_text(messages, _mask, hide), _each_text(variables, _mask, hide), messages, keep_marks)
        genuine = self._sealed.find(masked)
        if genuine == built:
            return self._sealed.reveal(text, self._sealed.specials.keys())
        if genuine:
            raise InputError(
                f"{self._name} would build special tokens ({', '.join(sorted(set(built)))}) out of what these messages "
                "say. Remove the parts of special tokens from them."
            )
        return text

    def _run(
        self,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        original: list[dict[str, Any]],
        keep_marks: bool,
    ) -> str:
        for message, given in zip(messages, original, strict=True):
            message["role"] = given["role"]  # names of roles are checked, and templates compute with them
        budget = Budget(_size(messages) + _size(variables), len(messages))
        given_variables = {"tools": None, "documents": None, "add_generation_prompt": False, **variables}
        try:
            text = self._compiled.render({**self._variables, **given_variables, "messages": messages, BUDGET: budget})
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"{self._name} writes half a character (a lone surrogate). Correct it.") from error
        except Exception as error:
            raise refusal(error, self._name) from error
        return text if keep_marks else self._marks.sub("", text)

    # -- what to learn from -------------------------------------------------------------------------------------------

    def _unmark(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        start: int | None = None
        length = last = 0
        for mark in self._marks.finditer(text):
            pieces.append(text[last : mark.start()])
            length += mark.start() - last
            last = mark.end()
            if mark[1]:
                start = length
            elif start is not None:
                spans.append((start, length))
                start = None
        pieces.append(text[last:])
        return "".join(pieces), spans

    def _said(
        self, text: str, messages: list[dict[str, Any]], index: int, variables: dict[str, Any]
    ) -> list[tuple[int, int]]:
        """Where message `index` is in `text`: what changes when it says something else, and the end of its turn."""
        other = chr(next(code for code in _PRIVATE if chr(code) not in text))
        blank = {"role": "assistant", "content": other}
        changed = self._render([*messages[:index], blank, *messages[index + 1 :]], variables)
        if other not in changed:
            return []
        start = _common(text, changed)
        end = len(text) - _common(text[start:][::-1], changed[start:][::-1])
        closing = self._sealed.names.get(self.turn_end or "")
        if closing and (match := re.compile(r"\s*" + re.escape(closing)).match(text, end)):
            end = match.end()
        return [(start, end)]

    def _expose_spans(self, text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """`text` with plain names for what step 2 hid, and the spans moved along."""
        cuts = [0, *(at for span in spans for at in span), len(text)]
        pieces = [self._sealed.expose(text[left:right]) for left, right in pairwise(cuts)]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        return "".join(pieces), list(zip(ends[1:-1:2], ends[2:-1:2], strict=True))


def overlap(spans: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]) -> list[bool]:
    """For each of the ascending `spans` of text, whether it lies in or touches one of the ascending `wanted` ones."""
    found: list[bool] = []
    index = 0
    for start, end in spans:
        while index < len(wanted) and wanted[index][1] <= start:
            index += 1
        found.append(index < len(wanted) and wanted[index][0] < max(end, start + 1))
    return found


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InputError(
            f"The messages must be a list of objects with `role` and `content`: got {type(messages).__name__}."
        )
    if not messages:
        raise InputError("The conversation is empty. Give at least one message.")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise InputError(
                f"Message {number} must be an object with a `role` that is a word (system, user, assistant, tool): "
                f"got {message!r:.100}."
            )
    plain: list[dict[str, Any]] = _plain(list(messages))
    return [_as_templates_read(message) for message in plain]


def _as_templates_read(message: dict[str, Any]) -> dict[str, Any]:
    """`message` as transformers hands it to a template: without what is None, reasoning under all its names."""
    given = {key: None if isinstance(value, Null) else value for key, value in message.items() if value is not None}
    thought = next((given[name] for name in REASONING if name in given), None)
    return given if thought is None else {"thinking": thought, **given, "reasoning_content": thought}


def continued(message: dict[str, Any], field: str, mark: str) -> str:
    """Put `mark` after the text of `field` in `message`, or after the last text among its parts; that text.

    InputError where there is no text.
    """
    value = message.get(field)
    names = [name for name in REASONING if message.get(name) == value] if field in REASONING else [field]
    if isinstance(value, str):
        message.update(dict.fromkeys(names, value + mark))
        return value
    for part in reversed(value) if isinstance(value, list) else ():
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            part["text"] = text + mark
            return text
    raise InputError(f"The last message has no `{field}` that is text: there is nothing to continue.")


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` rebuilt from JSON types alone: a template gets no object with methods of its own."""
    if depth > _DEEPEST:
        raise InputError(f"Messages and template variables are nested more than {_DEEPEST} deep: make them flatter.")
    if value is None or isinstance(value, bool | Null):
        return value
    if isinstance(value, str):
        return checked_text(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth): _plain(member, depth + 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member, depth + 1) for member in value]
    raise InputError(
        f"Messages and template variables hold text, numbers, lists and objects: got {type(value).__name__}."
    )


def _each_text(value: Any, change: Callable[[str], str], key_change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it, and `key_change` to the keys of objects."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            key_change(key) if isinstance(key, str) else key: _each_text(member, change, key_change)
            for key, member in value.items()
        }
    if isinstance(value, list):
        return [_each_text(member, change, key_change) for member in value]
    return value


def _mask(text: str) -> str:
    """`text` without a character that could be part of a special token; words, which templates compare, stay."""
    return text if _ROLE.fullmatch(text) else re.sub(r"\S", "\ue000", text)


def _common(one: str, other: str) -> int:
    """How many characters at the start of two strings are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _size(value: Any) -> int:
    """Characters in `value`, and something for every member."""
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, dict):
        return 10 + sum(_size(key) + _size(member) for key, member in value.items())
    if isinstance(value, list):
        return 10 + sum(map(_size, value))
    return 1
