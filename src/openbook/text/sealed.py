"""A second reading of a tokenizer in which no text a person can write is a special token.

In a tokenizer the special tokens are found by their names, so whoever can write `<|end|>` in a message could end the
turn. Switching the search off is not enough: in unigram and word-level vocabularies, and after some merges, the name is
an ordinary entry that ordinary text can match. So the sealed tokenizer is the same vocabulary with the same ids, where
every special token has a secret name drawn from 128 random bits. Text cannot spell it; our own code can, where a
special token is meant. Single bytes alone stay what they are (`!` is the padding of some published tokenizers): without
them text could not be written.

    text from a person          encode(text)                              special tokens impossible
    text that may name some     encode(reveal(text, {"<|end|>"}))         only those
    a rendered chat template    its own literals carry the secret names   only the template's
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers

from openbook.errors import InputError, TokenizerError
from openbook.text.backend import encoded
from openbook.text.engine import ALPHABET, Engine, Ids, Places


def checked_text(value: str) -> str:
    """`value`, when it is text that has a UTF-8 form; else InputError."""
    if not isinstance(value, str):
        raise InputError(f"A text must be a string: got {type(value).__name__}.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text holds half a character (U+{ord(value[error.start]):04X}, a lone surrogate, at position "
                f"{error.start}): it has no UTF-8 form. Repair the text where it was read, or replace that character."
            ) from error
    return value


class Sealed:
    """The sealed twin of `original`. `names` maps the content of each special token to its secret name."""

    def __init__(self, original: tokenizers.Tokenizer, specials: Mapping[str, int]) -> None:
        # Names of digits survive what templates do to text: trimming, JSON and HTML escapes, changes of case.
        self._secret = str(secrets.randbelow(10**38)).zfill(38)
        state = json.loads(original.to_str())
        written = _bytes(state)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in written]
        self.specials = {content: number for content, number in specials.items() if content not in written}
        self.names = {content: self.invent(str(number)) for content, number in self.specials.items()}
        self._hidden = {content: self.invent(f"0{number}") for content, number in self.specials.items()}
        ordinary = [token["content"] for token in state["added_tokens"] if token["content"] not in self.names]
        self._any = _longest_first([*self.names, *ordinary])
        self._shown = {name: content for content, name in self._hidden.items()}
        self._plain = self._shown | {name: content for content, name in self.names.items()}
        self._invented = re.compile(rf"\.{self._secret}\.\w+\.")
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_rename(state, self.names)))
        self._engine = Engine(self._tokenizer)
        for content, name in self.names.items():
            if self._tokenizer.token_to_id(name) != specials[content]:
                raise TokenizerError(
                    f"The ids of the special tokens in this tokenizer.json are inconsistent: {content!r} should be "
                    f"{specials[content]} but loads as {self._tokenizer.token_to_id(name)}. Save it again with the "
                    "library that wrote it."
                )

    @property
    def twin(self) -> tokenizers.Tokenizer:
        """The same vocabulary and pipeline, in which the special tokens have their secret names."""
        return self._tokenizer

    def invent(self, label: str) -> str:
        """A name for `label` that no text contains."""
        return f".{self._secret}.{label}."

    def reveal(self, text: str, allowed: Collection[str]) -> str:
        """`text` with each allowed special token in it under its secret name; the longest match from the left wins."""
        return self._any.sub(lambda match: self.names[match[0]] if match[0] in allowed else match[0], text)

    def find(self, text: str) -> list[str]:
        """The special tokens that `text` spells out, in order."""
        return [found for found in self._any.findall(text) if found in self.names]

    def hide(self, text: str) -> str:
        """`text` with every special token in it under a name that `expose` turns back and `encode` does not know."""
        return self._any.sub(lambda match: self._hidden.get(match[0], match[0]), text)

    def expose(self, text: str) -> str:
        """The inverse of `hide`; secret names stay."""
        return self._invented.sub(lambda match: self._shown.get(match[0], match[0]), text)

    def conceal(self, text: str) -> str:
        """Every invented name turned back into what people read."""
        return self._invented.sub(lambda match: self._plain.get(match[0], ""), text)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added before or after."""
        return self._engine.encode(text)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of `text`, and for each the characters of `text` it came from, as (start, end)."""
        encoding = encoded(lambda: self._tokenizer.encode(text, add_special_tokens=False))
        return encoding.ids, encoding.offsets

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        return self._engine.encode_batch(texts)

    def encode_arrays(self, texts: list[str]) -> tuple[Ids, Places]:
        """Ids of many texts one after the other, and where each begins and the last ends."""
        return self._engine.encode_arrays(texts)


def _longest_first(contents: Collection[str]) -> re.Pattern[str]:
    ordered = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def _bytes(state: dict[str, Any]) -> set[str]:
    """The special tokens of `state` that are bytes of its model, which texts are written with."""
    model = state["model"]
    bytewise = any('"ByteLevel"' in json.dumps(state[step]) for step in ("normalizer", "pre_tokenizer"))
    spellings = set(ALPHABET) if bytewise else set()
    if model.get("byte_fallback"):
        spellings |= {f"<0x{byte:02X}>" for byte in range(256)}
    vocab = model["vocab"] if isinstance(model["vocab"], dict) else {token for token, _ in model["vocab"]}
    found = {token["content"] for token in state["added_tokens"] if token["special"]}
    return {content for content in found & spellings if content in vocab}


def _rename(state: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The serialised tokenizer `state` with the special tokens under new `names`, and nothing added around the text."""
    for token in state["added_tokens"]:
        if token["content"] in names:
            token.update(content=names[token["content"]], special=True, normalized=False)
    state.update(post_processor=None, truncation=None, padding=None)
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocab.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, prefix, names)]
    return state


def _touches(merge: str | list[str], prefix: str, names: Mapping[str, str]) -> bool:
    """Whether a merge rule takes or makes the name of a special token."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right.removeprefix(prefix) in names
