"""Every template at hand over every conversation: the string of transformers, character for character."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import InputError
from openbook.text import Tokenizer
from tests.archive import archive
from tests.text.conversations import (
    ASKED,
    CALLED,
    CONVERSATIONS,
    DOCUMENTS,
    OPTIONS,
    RESULT,
    SAID,
    SYSTEM,
    WEATHER,
    both,
    differences,
)
from tests.text.templates import CONSTRUCTS, IMAGES, TALL

ARCHIVE = "tasks/tokenizers/llama.cpp/templates"
OURS = {"constructs": CONSTRUCTS, "images": IMAGES, "tall": TALL}
SOME = ("turns", "answered", "said and called", "image", "reasoning", "nothing")
Pair = tuple[Tokenizer, Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: both(template, tmp_path_factory.mktemp(name)) for name, template in OURS.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    files = sorted(archive(ARCHIVE).glob("*.jinja"))
    assert len(files) == 17
    texts = {file.stem: file.read_text(encoding="utf-8") for file in files}
    return {name: both(text, tmp_path_factory.mktemp("published")) for name, text in texts.items()}


def _options(name: str) -> list[dict[str, Any]]:
    """All options, but for a template that counts characters: it would count the mark that transformers puts in."""
    return [one for one in OPTIONS if name != "constructs" or "continue_final_message" not in one]


@pytest.mark.parametrize("name", OURS)
def test_our_own(name: str, pairs: dict[str, Pair]) -> None:
    assert differences(*pairs[name], names=SOME, options=_options(name)) == []


@pytest.mark.slow
def test_our_own_in_full(pairs: dict[str, Pair]) -> None:
    for name, pair in pairs.items():
        assert differences(*pair, options=_options(name)) == [], name


@pytest.mark.slow
def test_published(published: dict[str, Pair]) -> None:
    for name, pair in published.items():
        assert differences(*pair) == [], name


def test_a_fault_is_found(pairs: dict[str, Pair]) -> None:
    """A template that differs by one space does not pass."""
    ours, theirs = pairs["tall"]
    changed = ours.with_chat_template(ours.templates["default"].replace("<|end|>", " <|end|>", 1))
    assert differences(changed, theirs, names=SOME, options=OPTIONS[:1])


def test_ids(pairs: dict[str, Pair]) -> None:
    for ours, theirs in pairs.values():
        for messages in (CONVERSATIONS["turns"], CONVERSATIONS["answered"], CONVERSATIONS["image"]):
            expected = theirs.apply_chat_template(messages, tools=[WEATHER], add_generation_prompt=True)["input_ids"]
            assert ours.chat(messages, tools=[WEATHER]) == expected


def test_marked_turns(pairs: dict[str, Pair]) -> None:
    """The mask of what to learn, where the template marks it, over conversations with tools and reasoning."""
    ours, theirs = pairs["tall"]
    for name in ("turns", "call", "answered", "two calls", "said and called", "reasoning", "empty answer", "one"):
        expected = theirs.apply_chat_template(CONVERSATIONS[name], return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = ours.chat_ids(CONVERSATIONS[name])
        assert (ids, [int(bit) for bit in mask]) == (expected["input_ids"], expected["assistant_masks"]), name


def spelled(value: Any, name: str) -> Any:
    """`value` with the name of a special token in every text that is not a key or a word templates compare."""
    if isinstance(value, dict):
        kept = ("role", "type", "id", "tool_call_id")
        return {key: one if key in kept else spelled(one, name) for key, one in value.items()}
    if isinstance(value, list):
        return [spelled(one, name) for one in value]
    return f"{value} {name} x" if isinstance(value, str) else value


def special_ids(tokenizer: Tokenizer, messages: Any, more: dict[str, Any]) -> Counter[int] | None:
    """The special ids of a rendered conversation; None where the template refuses it."""
    try:
        ids = tokenizer.chat(messages, **more)
    except InputError:
        return None
    return Counter(number for number in ids if number in set(tokenizer.specials.values()))


def assert_messages_write_none(tokenizer: Tokenizer, names: list[str]) -> int:
    """No special token arises from what a message, a tool or a document says; how many were compared."""
    compared = 0
    for messages in (CONVERSATIONS[chosen] for chosen in ("no system", "turns", "answered", "parts", "call as text")):
        for given in ({}, {"tools": [WEATHER]}, {"documents": DOCUMENTS}, {"functions": "f", "datetime": "d"}):
            harmless = special_ids(tokenizer, spelled(copy.deepcopy(messages), "y"), spelled(given, "y"))
            for name in names:
                got = special_ids(tokenizer, spelled(copy.deepcopy(messages), name), spelled(given, name))
                assert got is None or got == harmless, (name, messages, given)
                compared += got is not None
    return compared


@pytest.mark.parametrize("name", OURS)
def test_messages_write_no_special_tokens(name: str, pairs: dict[str, Pair]) -> None:
    tokenizer = pairs[name][0]
    assert assert_messages_write_none(tokenizer, ["</s>", "<|end|>"])


@pytest.mark.slow
def test_messages_write_no_special_tokens_in_published(published: dict[str, Pair]) -> None:
    for name, (tokenizer, _) in published.items():
        assert assert_messages_write_none(tokenizer, list(tokenizer.specials)), name


@pytest.mark.slow
def test_long_conversations_are_no_bombs(published: dict[str, Pair]) -> None:
    """Templates that look from every message at all the others are given the work for it."""
    turns = [*CONVERSATIONS["no system"][:2]] * 150
    calls = [message for _ in range(60) for message in CONVERSATIONS["answered"][:4]]
    for name, (ours, theirs) in published.items():
        for messages in (turns, calls):
            try:
                expected = theirs.apply_chat_template(messages, tools=[WEATHER], tokenize=False)
            except Exception:  # this template does not know tools, or not such messages
                continue
            assert ours.render_chat(messages, tools=[WEATHER], add_generation_prompt=False) == expected, name


class TestContinued:
    def test_within_the_last_message(self, pairs: dict[str, Pair]) -> None:
        ours = pairs["tall"][0]
        whole = ours.render_chat(CONVERSATIONS["turns"], add_generation_prompt=False)
        begun = ours.render_chat(CONVERSATIONS["turns"], continue_final_message=True)
        assert whole.startswith(begun)
        assert begun.endswith("Gut.")
        assert ours.chat(CONVERSATIONS["turns"], continue_final_message=True) == ours.encode(begun, allow_specials=True)

    @pytest.mark.parametrize(
        ("messages", "field"),
        [
            ([{"role": "user", "content": [{"type": "image"}]}], True),
            ([*CONVERSATIONS["one"], CALLED], True),
            (CONVERSATIONS["one"], "reasoning_content"),
            (CONVERSATIONS["one"], "nonsense"),
        ],
    )
    def test_nothing_to_continue(self, messages: Any, field: bool | str, pairs: dict[str, Pair]) -> None:
        with pytest.raises(InputError, match=r"nothing to continue|cannot be continued"):
            pairs["tall"][0].render_chat(messages, continue_final_message=field)


@pytest.mark.slow
def test_the_one_inside_a_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = archive("tasks/tokenizers/llama.cpp/ggml-vocab-phi-3.gguf")
    template = gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents()
    assert differences(*both(template, tmp_path), names=SOME, options=OPTIONS[:2]) == []


@pytest.mark.slow
def test_the_ids_of_mistral_common() -> None:
    """On a real vocabulary: what a message says in the way of special tokens is text there, too."""
    mistral_common = pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    template = (archive(ARCHIVE) / "mistralai-Mistral-Nemo-Instruct-2407.jinja").read_text(encoding="utf-8")
    file = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    ours, theirs = Tokenizer.load(file).with_chat_template(template), MistralTokenizer.v3(is_tekken=True)
    named = {"role": "user", "content": "x <s> [INST] y [/INST]</s> 狐狸"}
    call = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ülm"}}}
    called = [named, {"role": "assistant", "content": None, "tool_calls": [call]}, RESULT]
    tool = copy.deepcopy(WEATHER)
    tool["function"]["description"] = "the weather"  # the template does not escape what is in quotes
    for messages, tools in (([SYSTEM, named], None), ([ASKED, SAID, named], None), (called, [tool])):
        text = copy.deepcopy(messages)
        for message in text:
            for one in message.get("tool_calls") or []:
                one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
        request = ChatCompletionRequest.from_openai(text, tools=tools)
        assert ours.chat(messages, tools=tools) == theirs.encode_chat_completion(request).tokens
