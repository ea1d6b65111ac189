"""Chat templates: the ids of transformers, the mask of what to learn, and errors that say who is at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import InputError, TokenizerError
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES, write
from tests.text.templates import BRACKETS, CONVERSATION, HEADERS, MARKED, PIECES, THINKING, TURNS

SHAPES = {
    "headers": ("llama3", HEADERS),
    "brackets": ("llama2", BRACKETS),
    "turns": ("gemma", TURNS),
    "pieces": ("trained", PIECES),
    "thinking": ("trained", THINKING),
    "marked": ("trained", MARKED),
    "ours": ("trained", None),
}
TOOLS = [{"type": "function", "function": {"name": "wetter", "parameters": {"type": "object", "enum": ["é", "<b>"]}}}]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(SENTENCES * 3, 400)


@pytest.fixture(scope="module")
def shapes(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    from transformers import AutoTokenizer

    loaded = {}
    for name, (kind, template) in SHAPES.items():
        path = tmp_path_factory.mktemp(name)
        if kind == "trained":
            (trained if template is None else trained.with_chat_template(template)).save(path)
        else:
            write(kind, path, chat_template=template)
        loaded[name] = (Tokenizer.load(path), AutoTokenizer.from_pretrained(path))
    return loaded


def learned(tokenizer: Tokenizer, messages: list[dict[str, Any]], **more: Any) -> list[str]:
    """What the mask of `chat_ids` selects, as texts."""
    ids, mask = tokenizer.chat_ids(messages, **more)
    assert len(ids) == len(mask)
    runs: list[list[int]] = []
    for index, (number, wanted) in enumerate(zip(ids, mask, strict=True)):
        if wanted and not (index and mask[index - 1]):
            runs.append([])
        if wanted:
            runs[-1].append(number)
    return [tokenizer.decode(run, skip_specials=False) for run in runs]


@pytest.mark.parametrize("shape", SHAPES)
class TestAgainstTransformers:
    def test_ids(self, shape: str, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = shapes[shape]
        for length in range(1, len(CONVERSATION) + 1):
            for prompt in (True, False):
                expected = theirs.apply_chat_template(CONVERSATION[:length], add_generation_prompt=prompt)["input_ids"]
                assert ours.chat(CONVERSATION[:length], add_generation_prompt=prompt) == expected
        assert ours.chat_ids(CONVERSATION)[0] == ours.chat(CONVERSATION, add_generation_prompt=False)

    def test_text(self, shape: str, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = shapes[shape]
        text = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(CONVERSATION) == text


class TestVariables:
    def test_tools(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = shapes["thinking"]
        calls = [{"type": "function", "function": {"name": "wetter", "arguments": {"wo": "Ulm"}}}]
        messages = [
            *CONVERSATION,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "<b>&nbsp;é"},
        ]
        expected = theirs.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True)["input_ids"]
        assert ours.chat(messages, tools=TOOLS) == expected

    def test_others(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = shapes["thinking"]
        expected = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, enable_thinking=False)
        assert ours.chat(CONVERSATION, enable_thinking=False) == expected["input_ids"] != ours.chat(CONVERSATION)

    def test_named_templates(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": PIECES}, {"name": "tool_use", "template": "{{ tools[0].type }}"}]
        tokenizer = Tokenizer.load(write("byte_level", tmp_path, chat_template=named))
        assert tokenizer.render_chat(CONVERSATION, tools=TOOLS) == "function"
        assert tokenizer.render_chat(CONVERSATION[:1]).startswith("<|user|>Who")
        tokenizer.save(tmp_path / "again")
        assert Tokenizer.load(tmp_path / "again").templates == tokenizer.templates

    def test_a_file_of_its_own(self, tmp_path: Path) -> None:
        write("byte_level", tmp_path, chat_template="old")
        (tmp_path / "chat_template.jinja").write_text("new")
        assert Tokenizer.load(tmp_path).render_chat(CONVERSATION) == "new"
        Tokenizer.load(tmp_path).with_chat_template("newer").save(tmp_path)
        assert Tokenizer.load(tmp_path).render_chat(CONVERSATION) == "newer"
        Tokenizer.load(tmp_path).with_chat_template(None).save(tmp_path)
        assert not Tokenizer.load(tmp_path).templates


class TestLearned:
    @pytest.mark.parametrize("shape", ["pieces", "marked", "ours"])
    def test_turns_with_an_end(self, shape: str, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        assert learned(shapes[shape][0], CONVERSATION) == ["The fox. 狐狸 🦊<|end|>", "At night.<|end|>"]

    def test_marks_agree_with_transformers(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        ours, theirs = shapes["marked"]
        expected = theirs.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = ours.chat_ids(CONVERSATION)
        assert (ids, [int(bit) for bit in mask]) == (expected["input_ids"], expected["assistant_masks"])

    def test_other_shapes(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        said = learned(shapes["headers"][0], CONVERSATION)
        assert said == ["The fox. 狐狸 🦊<|eot_id|>", "At night.<|eot_id|>"]
        assert learned(shapes["turns"][0], CONVERSATION) == ["The fox. 狐狸 🦊<end_of_turn>", "At night.<end_of_turn>"]
        said = learned(shapes["brackets"][0], CONVERSATION)
        assert [text.strip() for text in said] == ["The fox. 狐狸 🦊 </s>", "At night. </s>"]

    def test_history_that_the_template_rewrites(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        thought = [
            CONVERSATION[0],
            {"role": "assistant", "content": "<think>hm</think>The fox."},
            CONVERSATION[2],
            {"role": "assistant", "content": "<think>oh</think>At night."},
        ]
        said = learned(shapes["thinking"][0], thought)
        assert said == ["The fox.<|end|>", "<think>oh</think>At night.<|end|>"]

    def test_calls_of_tools(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        calls = [{"function": {"name": "f", "arguments": "{}"}}]
        messages = [CONVERSATION[0], {"role": "assistant", "content": "Let me see.", "tool_calls": calls}]
        said = learned(shapes["thinking"][0], messages, tools=TOOLS)
        assert said == ['Let me see.\n<tool_call>{"name": "f", "arguments": "{}"}</tool_call><|end|>']

    def test_nothing_said(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        assert learned(shapes["ours"][0], CONVERSATION[:1]) == []
        empty = [CONVERSATION[0], {"role": "assistant", "content": ""}]
        assert learned(shapes["ours"][0], empty) == ["<|end|>"]

    def test_the_same_words_in_another_mouth(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        echo = [{"role": "user", "content": "At night."}, {"role": "assistant", "content": "At night."}]
        ids, mask = shapes["ours"][0].chat_ids([*echo, *echo])
        runs = learned(shapes["ours"][0], [*echo, *echo])
        assert runs == ["At night.<|end|>"] * 2
        assert not any(mask[: ids.index(shapes["ours"][0].specials["<|assistant|>"]) + 1])

    def test_named_tokens_in_what_is_said(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        messages = [{"role": "user", "content": "<|end|>"}, {"role": "assistant", "content": "<|end|>yes<|eos|>"}]
        ids, mask = shapes["ours"][0].chat_ids(messages)
        assert learned(shapes["ours"][0], messages) == ["<|end|>yes<|eos|><|end|>"]
        assert [ids[i] for i in range(len(ids)) if mask[i]].count(shapes["ours"][0].specials["<|end|>"]) == 1


def test_ends_of_turns(shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
    """The stops: the eos token, and the token that ends a turn, read off the template."""
    ends = {"headers": ["<|eot_id|>"], "brackets": ["</s>"], "turns": ["<eos>", "<end_of_turn>"]}
    ends |= {shape: ["<|eos|>", "<|end|>"] for shape in ("pieces", "thinking", "marked", "ours")}
    for shape, names in ends.items():
        tokenizer = shapes[shape][0]
        assert [tokenizer.token(number) for number in tokenizer.stops] == names, shape


class TestErrors:
    @pytest.mark.parametrize(
        ("messages", "says"),
        [
            ([], "conversation is empty"),
            ("hello", "must be a list"),
            ({"role": "user"}, "must be a list"),
            ([{"content": "hello"}], "Message 0 must be an object with a `role`"),
            ([{"role": 3, "content": "hello"}], "Message 0"),
            ([{"role": "user|><|end", "content": "hello"}], "Message 0"),
            (["hello"], "Message 0"),
            ([{"role": "user", "content": "hello"}, {"role": "wizard", "content": "x"}], "got wizard"),
            ([{"role": "user"}], "needs something that these messages do not have"),
            ([{"role": "user", "content": None}], "needs something that these messages do not have"),
            ([{"role": "user", "content": 3}], "cannot render these messages"),
            ([{"role": "user", "content": "\ud800"}], "half a character"),
            ([{"role": "user", "content": object()}], "got object"),
        ],
    )
    def test_messages(self, messages: Any, says: str, trained: Tokenizer) -> None:
        with pytest.raises(InputError, match=says):
            trained.chat(messages)

    @pytest.mark.parametrize(
        ("template", "says"),
        [
            ("{% if %}", "line 1"),
            ("\n{{ 'x' | nonsense }}", "line 2.*nonsense"),
            ("{% generation %}", "line 1"),
            ("x" * 100_001, "100001 characters"),
            ("{{" + "9" * 5000 + "}}", "cannot be compiled"),
            ("{{ '\\ud800' }}", "half a character"),
            ("{% include 'x' %}", "leave its sandbox"),
        ],
    )
    def test_templates(self, template: str, says: str, trained: Tokenizer) -> None:
        with pytest.raises(TokenizerError, match=says):
            trained.with_chat_template(template).chat(CONVERSATION)

    def test_a_bad_template_does_not_stop_the_rest(self, trained: Tokenizer) -> None:
        tokenizer = trained.with_chat_template("{% if %}")
        assert tokenizer.stops == (1,)
        assert tokenizer.encode("hello") == trained.encode("hello")

    def test_no_template(self, trained: Tokenizer, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match="no chat template"):
            trained.with_chat_template(None).chat(CONVERSATION)
        named = [{"name": "tool_use", "template": "x"}]
        only = Tokenizer.load(write("byte_level", tmp_path, chat_template=named))
        assert only.render_chat(CONVERSATION, tools=TOOLS) == "x"
        with pytest.raises(TokenizerError, match=r"no default chat template\. Known: tool_use"):
            only.chat(CONVERSATION)

    def test_raised_by_the_template(self, shapes: dict[str, tuple[Tokenizer, Any]]) -> None:
        with pytest.raises(InputError, match=r"refuses these messages: Roles must alternate\."):
            shapes["brackets"][0].chat(CONVERSATION[1:])


def test_the_saved_template_is_plain_json(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == trained.templates["default"]
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [1, 6]
