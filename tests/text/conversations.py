"""Conversations of every shape that chat templates read, and what else a caller may say.

`differences` renders all of them with a template here and in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openbook.errors import OpenbookError
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES

Messages = list[dict[str, Any]]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Wetter für <b>Ort</b> & "Tag"',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "the city"},
                "days": {"type": "integer", "enum": [1, 2], "description": "how many"},
                "more": {"type": "array", "items": {"type": "string"}, "description": "else"},
            },
            "required": ["city"],
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "the time",
        "parameters": {"type": "object", "properties": {}},
        "return": {"type": "string"},
    },
}
DOCUMENTS = [{"title": "T", "text": "words é"}, {"title": "U", "text": "x", "snippet": "s"}]

SYSTEM = {"role": "system", "content": "Be <brief>. é"}
ASKED = {"role": "user", "content": "Wie ist das Wetter? 狐狸 🦊"}
SAID = {"role": "assistant", "content": "Gut."}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": '{"t": 3}'}


def calling(arguments: Any, content: str | None = None, times: int = 1) -> dict[str, Any]:
    """An assistant's message that calls a tool."""
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"id": "abcdef123", "type": "function", "function": function}] * times
    return {"role": "assistant", "content": content, "tool_calls": calls}


CALLED = calling({"city": "Ülm", "days": 2})
CONVERSATIONS: dict[str, Messages] = {
    "one": [ASKED],
    "system": [SYSTEM, ASKED],
    "turns": [SYSTEM, ASKED, SAID, {"role": "user", "content": "  und\n\n"}, SAID],
    "no system": [ASKED, SAID, ASKED],
    "empty": [{"role": "user", "content": ""}],
    "empty answer": [ASKED, {"role": "assistant", "content": ""}],
    "call": [ASKED, CALLED],
    "call as text": [ASKED, calling('{"city": "Ulm"}')],
    "result": [SYSTEM, ASKED, CALLED, RESULT],
    "answered": [ASKED, CALLED, RESULT, SAID, ASKED],
    "result as object": [ASKED, CALLED, {**RESULT, "content": {"t": 3, "ü": [1, None, True]}}, SAID],
    "two calls": [ASKED, calling({"city": "a"}, times=2), RESULT, RESULT, SAID],
    "said and called": [ASKED, calling({"city": "a"}, "Let me see."), RESULT],
    "image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": " two "}]}, SAID],
    "thought": [ASKED, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGut."}, ASKED],
    "reasoning": [ASKED, {**SAID, "reasoning_content": "warum"}, ASKED, {**SAID, "reasoning": "darum"}],
    "developer": [{"role": "developer", "content": "x"}, ASKED],
    "ipython": [ASKED, {"role": "ipython", "content": "out"}, SAID],
    "user twice": [ASKED, ASKED],
    "null": [{"role": "user", "content": None}],
    "no calls": [ASKED, {**SAID, "tool_calls": None}],
    "like a template": [{"role": "user", "content": "{{ 1 }} {% if %} \\n 'q' \"d\" \t\u200b"}, SAID],
    "nothing": [{"role": "user"}],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True},
    {"tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    {"tools": []},
    {"documents": DOCUMENTS, "add_generation_prompt": True},
    {"documents": DOCUMENTS, "tools": [WEATHER], "citation_mode": "ACCURATE", "safety_mode": "STRICT"},
    {"enable_thinking": False, "add_generation_prompt": True},
    {"date_string": "1 Jan 2030", "tools_in_user_message": False, "tools": [WEATHER]},
    {"functions": "[f]", "datetime": "today", "add_generation_prompt": True},
    {"continue_final_message": True},
    {"continue_final_message": "reasoning_content", "tools": [WEATHER]},
]
_NAMES = re.compile(
    r"<\|[A-Za-z0-9_]{1,40}\|>|<｜[^<>\s]{1,40}｜>|<\|?[A-Z_]{3,40}\|?>|\[/?[A-Z_]{3,20}\]|<\w+_of_turn>"
)


def both(template: str, folder: Path) -> tuple[Tokenizer, Any]:
    """A tokenizer with `template` and the special tokens that it writes, here and in transformers."""
    from transformers import PreTrainedTokenizerFast

    specials = list(dict.fromkeys(["<s>", "</s>", "<unk>", *_NAMES.findall(template)]))
    ours = Tokenizer.train(SENTENCES, 256 + len(specials) + 20, specials, chat_template=template)
    ours.save(folder)
    return ours, PreTrainedTokenizerFast.from_pretrained(folder)


def theirs_of(theirs: Any, messages: Messages, options: Mapping[str, Any]) -> str | Exception:
    """What transformers writes, or how it refuses."""
    try:
        text: str = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # templates raise whatever they like
        return error
    return text


def differences(
    ours: Tokenizer, theirs: Any, names: Iterable[str] = CONVERSATIONS, options: Iterable[dict[str, Any]] = OPTIONS
) -> list[tuple[str, dict[str, Any], Any, Any]]:
    """Where the two do not write the same, or one refuses alone."""
    found = []
    for name in names:
        for chosen in options:
            expected = theirs_of(theirs, CONVERSATIONS[name], chosen)
            try:
                got: str | Exception = ours.render_chat(
                    CONVERSATIONS[name], **{"add_generation_prompt": False, **chosen}
                )
            except OpenbookError as error:
                got = error
            if got != expected and not (isinstance(got, Exception) and isinstance(expected, Exception)):
                found.append((name, chosen, expected, got))
    return found
