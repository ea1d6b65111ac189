"""The vocabulary in the header of a GGUF, by llama.cpp's rules.

    tokenizer.ggml.model    gpt2: byte-level merges, split as `pre` says      llama: SentencePiece's merges by scores
                            bert: word pieces, `▁` before the first of a word   t5: a unigram model
    tokens, scores, merges, token_type     a list each; a type is a `Kind` of SentencePiece
    bos_token_id …, add_bos_token, add_eos_token, add_space_prefix, tokenizer.chat_template

User-defined tokens are found in any text, control tokens only where special tokens are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.errors import TokenizerError, nearest
from openbook.text.folder import Added, Settings
from openbook.text.formats import byte_level, word_pieces
from openbook.text.formats.found import (
    Around,
    Found,
    State,
    added_tokens,
    damaged,
    sequence,
    split,
    state_of,
    substitute,
)
from openbook.text.formats.gguf_header import MAGIC, read_header
from openbook.text.formats.gguf_splits import SPLITS
from openbook.text.formats.pieces import SPACE, Kind, Piece, Spaces, byte_pairs, decoder, unigram
from openbook.text.formats.spaces import normalizer

__all__ = ["MAGIC", "read"]

_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "gpt2": {},
}
# What is not a letter of a word, for bert: signs, and the blocks that BERT takes for Chinese.
_ALONE = (
    r"[\p{P}$+<=>^`|~\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}"
    r"\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{2F800}-\x{2FA1F}]"
)


@dataclass(frozen=True)
class _Header:
    """The values of the header, checked where they are asked for."""

    values: dict[str, Any]
    path: Path
    model: str
    tokens: list[str]
    kinds: list[Kind]
    roles: dict[str, int]

    def listed(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        value = self.values.get(f"ggml.{key}")
        if not isinstance(value, list) or not all(type(one) is kind for one in value):
            raise damaged(self.path, f"`tokenizer.ggml.{key}` must be a list of {kind.__name__}")
        if count is not None and len(value) < count:
            raise damaged(self.path, f"`tokenizer.ggml.{key}` has {len(value)} members for {count} tokens")
        return value[:count]

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(f"ggml.{key}", default)
        if not isinstance(value, bool):
            raise damaged(self.path, f"`tokenizer.ggml.{key}` must be true or false")
        return value

    def ids(self, *kinds: Kind) -> dict[str, int]:
        return {self.tokens[number]: number for number, kind in enumerate(self.kinds) if kind in kinds}

    def added(self) -> list[State]:
        """Control tokens, the unknown token and those with a role are special; user-defined ones are not."""
        special = self.ids(Kind.CONTROL, Kind.UNKNOWN) | {self.tokens[number]: number for number in self.roles.values()}
        plain = {name: Added(content=name, special=False) for name in self.ids(Kind.USER) if name not in special}
        return added_tokens(special | self.ids(Kind.USER), plain)

    def around(self, bos: bool, eos: bool, first: str = "bos", last: str = "eos") -> Around | None:
        before, after = (
            {self.tokens[self.roles[role]]: self.roles[role]} if wanted and role in self.roles else {}
            for role, wanted in ((first, bos), (last, eos))
        )
        return Around(before=before, after=after, between=before) if before or after else None

    def pieces(self) -> list[Piece]:
        """As SentencePiece's; user-defined tokens are found in the raw text, before there are pieces."""
        scores = self.listed("scores", float, len(self.tokens))
        kinds = [{Kind.USER: Kind.CONTROL, Kind.UNUSED: Kind.NORMAL}.get(kind, kind) for kind in self.kinds]
        return [Piece(*row) for row in zip(self.tokens, scores, kinds, strict=True)]


def read(path: Path) -> Found:
    """Read the vocabulary of a GGUF."""
    header = _header(path)
    state = _BUILDERS[header.model](header)
    stops = [header.values.get(f"ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    known = [number for number in stops if type(number) is int and number < len(header.tokens)]
    roles = {role: Added(content=header.tokens[number]) for role, number in header.roles.items()}
    templates = {
        key.removeprefix("chat_template").removeprefix(".") or "default": value
        for key, value in header.values.items()
        if (key == "chat_template" or key.startswith("chat_template.")) and isinstance(value, str)
    }
    return Found(state=state, settings=Settings(roles=roles, templates=templates, stops=tuple(dict.fromkeys(known))))


def _header(path: Path) -> _Header:
    values = read_header(path, "tokenizer.")
    model = values.get("ggml.model")
    if model not in _BUILDERS:
        raise TokenizerError(
            f"The tokenizer in '{path}' is of the kind {model!r}, which is not read here: {', '.join(_BUILDERS)} are."
        )
    header = _Header(values, path, model, [], [], {})
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(header.listed("tokens", str))]
    if not tokens or len(set(tokens)) < len(tokens):
        raise damaged(path, "its tokens must be different")
    try:
        types = header.listed("token_type", int, len(tokens)) if "ggml.token_type" in values else [1] * len(tokens)
        kinds = [Kind(value) if value else Kind.UNUSED for value in types]
    except ValueError as error:
        raise damaged(path, f"there is no such type of a token ({error})") from error
    roles = dict(_DEFAULTS[model])
    for role, name in _ROLES.items():
        if type(number := values.get(f"ggml.{name}_token_id")) is int:
            roles[role] = number
    roles = {role: number for role, number in roles.items() if 0 <= number < len(tokens)}
    return _Header(values, path, model, tokens, kinds, roles)


def _merged(header: _Header) -> State:
    name = header.values.get("ggml.pre", "default")
    if name not in SPLITS:
        raise TokenizerError(
            f"'{header.path}' splits text by the rule {name!r} (`tokenizer.ggml.pre`), which is not known here."
            + nearest(str(name), SPLITS)
        )
    rule = SPLITS[name]
    merges = []
    for line in header.listed("merges", str):
        at = line.find(" ", 1)
        if at < 0:
            raise damaged(header.path, f"a merge is not a pair of tokens: {line!r:.60}")
        merges.append((line[:at], line[at + 1 :]))
    vocab = {token: number for number, token in enumerate(header.tokens)}
    return byte_level.pipeline(
        vocab,
        dict.fromkeys(merges),
        patterns=tuple(byte_level.translate(pattern, header.path) for pattern in rule.patterns),
        whole_first=rule.whole_first,
        added=header.added(),
        around=header.around(header.flag("add_bos_token", rule.bos), header.flag("add_eos_token", False)),
    )


def _scored(header: _Header) -> State:
    spaces = Spaces(dummy=header.flag("add_space_prefix", True), collapse=False)
    fallback = Kind.BYTE in header.kinds
    made = byte_pairs(_with_unknown(header), spaces, fallback, header.path)
    return state_of(
        made.model,
        added=header.added(),
        normalizer=normalizer(b"", spaces, header.path),
        pre_tokenizer=made.pre_tokenizer,
        decoder=decoder(spaces, fallback),
        around=header.around(header.flag("add_bos_token", True), header.flag("add_eos_token", False)),
    )


def _likeliest(header: _Header) -> State:
    spaces = Spaces(dummy=header.flag("add_space_prefix", True), collapse=header.flag("remove_extra_whitespaces", True))
    charsmap = b""
    if "ggml.precompiled_charsmap" in header.values:
        charsmap = bytes(number & 0xFF for number in header.listed("precompiled_charsmap", int))
    fallback = Kind.BYTE in header.kinds
    made = unigram(_with_unknown(header), spaces, fallback, header.path)
    return state_of(
        made.model,
        added=header.added(),
        normalizer=normalizer(charsmap, spaces, header.path),
        pre_tokenizer=made.pre_tokenizer,
        decoder=decoder(spaces, fallback),
        around=header.around(header.flag("add_bos_token", False), header.flag("add_eos_token", True)),
    )


def _with_unknown(header: _Header) -> list[Piece]:
    pieces = header.pieces()
    unknown = header.roles.get("unk")
    if unknown is None:
        raise damaged(header.path, "it has no unknown token")
    return [
        piece._replace(kind=Kind.UNKNOWN if number == unknown else Kind.CONTROL)
        if number == unknown or piece.kind is Kind.UNKNOWN
        else piece
        for number, piece in enumerate(pieces)
    ]


def _word_pieces(header: _Header) -> State:
    """Here a word's first piece has a mark, in a vocab.txt the others have one."""
    fixed = {*header.ids(Kind.CONTROL, Kind.UNKNOWN), *(header.tokens[number] for number in header.roles.values())}
    vocab: dict[str, int] = {}
    for number, token in enumerate(header.tokens):
        first = token.removeprefix(SPACE) if token.startswith(SPACE) else None
        spelled = token if token in fixed else f"##{token}" if first is None else first
        if spelled in vocab:
            raise damaged(header.path, f"two tokens are both {spelled!r}")
        vocab[spelled] = number
    if "unk" not in header.roles:
        raise damaged(header.path, "it has no unknown token")
    lowercase = header.flag("normalizer.lowercase", True)
    steps = []
    if header.flag("normalizer.strip_accents", lowercase):
        steps += [{"type": "NFD"}, substitute(r"\p{M}", "")]
    steps += [substitute(r"[\p{C}\x{FFFD}&&[^\s]]", "")]
    steps += [{"type": "Lowercase"}] if lowercase else []
    spaces = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Removed", "invert": False}
    return word_pieces.pipeline(
        vocab,
        unk=header.tokens[header.roles["unk"]],
        normalizer=sequence("normalizers", steps),
        pre_tokenizer=sequence("pretokenizers", [spaces, split(_ALONE)]),
        added=header.added(),
        around=header.around(True, True, "cls" if "cls" in header.roles else "bos", "sep"),
        longest=1 << 30,
    )


_BUILDERS = {"gpt2": _merged, "llama": _scored, "bert": _word_pieces, "t5": _likeliest}
