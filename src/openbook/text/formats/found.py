"""What a reader of a foreign vocabulary gives back: the state of a tokenizer.json, and what its tokens are for.

The small pieces that the readers build such a state of stand here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from openbook.errors import TokenizerError
from openbook.files import explain_os_error
from openbook.text.backend import guarded
from openbook.text.folder import Added, Settings

State = dict[str, Any]
LARGEST = 1 << 27  # bytes of a vocabulary file; the largest that is published has 20 MB
MOST = 1 << 22  # tokens of a vocabulary; the largest that is published has 256 thousand


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the caller of `Tokenizer.load` says where a file does not.

    pattern     the regular expression that splits text before it is merged, in tiktoken's syntax
    specials    special tokens, content → id
    lowercase   whether a vocabulary of word pieces is for text in lower case
    """

    pattern: str | None = None
    specials: Mapping[str, int] | None = None
    lowercase: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A vocabulary that was read: `state` as in a tokenizer.json, and the roles, templates and stops that it names."""

    state: State
    settings: Settings = field(default_factory=Settings)

    def backend(self, where: Path) -> tokenizers.Tokenizer:
        """The tokenizer of this state."""
        what = f"The vocabulary in '{where}' cannot be used"
        return guarded(lambda: tokenizers.Tokenizer.from_str(json.dumps(self.state)), what)

    def beside(self, other: Settings) -> Settings:
        """The settings, where `other`, from the files beside the vocabulary, has the last word."""
        own = self.settings
        raw = {key: value for key, value in other.raw.items() if key not in _OF_A_CLASS}
        return replace(
            other,
            roles={**own.roles, **other.roles},
            added=other.added or own.added,
            extra=other.extra or own.extra,
            templates=other.templates or own.templates,
            stops=other.stops or own.stops,
            raw=raw,
        )


@dataclass(frozen=True, kw_only=True)
class Around:
    """The special tokens before and after a text, and between two texts; content → id."""

    before: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)

    def template(self) -> State:
        """The post-processor that puts them there."""

        def told(tokens: Mapping[str, int], kind: int) -> list[State]:
            return [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]

        texts: list[State] = [{"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1))]
        first = [*told(self.before, 0), texts[0], *told(self.after, 0)]
        used = {**self.before, **self.after, **self.between}
        return {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, *told(self.between, 1), texts[1], *told(self.after, 1)],
            "special_tokens": {token: {"id": token, "ids": [used[token]], "tokens": [token]} for token in used},
        }


# Keys of tokenizer_config.json that tell a library how to build the pipeline from the older files. The pipeline is
# built here; written beside the finished tokenizer.json they would make a reader build it again, another way.
_OF_A_CLASS = {"tokenizer_class", "auto_map", "add_prefix_space", "add_bos_token", "add_eos_token", "legacy"}
_OF_A_CLASS |= {"sp_model_kwargs", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "trim_offsets"}
_OF_A_CLASS |= {"do_basic_tokenize", "never_split", "use_default_system_prompt", "vocab_file", "merges_file"}
_OF_A_CLASS |= {"from_slow", "vocab_size", "backend", "spaces_between_special_tokens", "do_word_tokenize"}


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of bearable size; TokenizerError."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise TokenizerError(f"'{path}' holds {size >> 20} MB: that is no vocabulary (at most {LARGEST >> 20} MB).")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(str(explain_os_error(error, path, "read"))) from error


def read_text(path: Path) -> str:
    """The text of a file; TokenizerError when it is no UTF-8."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"'{path}' is damaged: byte {error.start} is not UTF-8. Fetch it again.") from error


def damaged(path: Path, what: str) -> TokenizerError:
    """The error for a file that says something impossible."""
    return TokenizerError(f"'{path}' is damaged: {what}. Fetch it again.")


def added_tokens(ids: Mapping[str, int], described: Mapping[str, Added] | None = None) -> list[State]:
    """The `added_tokens` of a state: special and matched in raw text, where `described` does not say otherwise."""
    rows = []
    for content, number in sorted(ids.items(), key=lambda item: item[1]):
        token = (described or {}).get(content, Added(content=content))
        rows.append({"id": number, **asdict(replace(token, content=content))})
    return rows


def state_of(
    model: State,
    *,
    added: Sequence[State] = (),
    normalizer: State | None = None,
    pre_tokenizer: State | None = None,
    decoder: State | None = None,
    around: Around | None = None,
) -> State:
    """A whole state."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": around.template() if around and (around.before or around.after) else None,
        "decoder": decoder,
        "model": model,
    }


def bpe(
    vocab: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    *,
    whole_first: bool = False,
    unk: str | None = None,
    byte_fallback: bool = False,
) -> State:
    """Byte-pair encoding. `whole_first`: a piece that is in the vocabulary is taken whole, whatever the merges say."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unk is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": whole_first,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }


def sequence(kind: str, steps: Sequence[State]) -> State | None:
    """Several steps as one; `kind` is the key of the list: normalizers, pretokenizers, decoders."""
    if len(steps) < 2:
        return steps[0] if steps else None
    return {"type": "Sequence", kind: list(steps)}


def split(pattern: str) -> State:
    """What matches `pattern` stands alone, and so does what lies between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def substitute(pattern: str, content: str, *, literal: bool = False) -> State:
    """Normalisation: what matches becomes `content`."""
    return {"type": "Replace", "pattern": {"String" if literal else "Regex": pattern}, "content": content}
