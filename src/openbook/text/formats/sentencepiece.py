"""SentencePiece models: pieces with scores, how text is normalised, byte-pair encoding or a unigram model over it.

Kudo & Richardson 2018; the file is a protocol buffer (`sentencepiece_model.proto`), read by `wire.py`:

    ModelProto      1 pieces …   2 trainer   3 normalizer   5 denormalizer
    piece           1 text   2 score   3 kind
    trainer         3 model type   24 space as suffix   35 byte fallback   45–48 names of unk, bos, eos, pad
    normalizer      2 table of characters   3 dummy prefix   4 remove extra spaces   5 write spaces as ▁

The ids are those of the `sentencepiece` library. What a tokenizer.json cannot say exactly is refused.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

from openbook.errors import TokenizerError
from openbook.text.folder import Added, Settings
from openbook.text.formats import wire
from openbook.text.formats.charsmap import changes
from openbook.text.formats.found import MOST, Around, Found, added_tokens, damaged, read_bytes, state_of
from openbook.text.formats.pieces import Kind, Piece, Spaces, byte_pairs, decoder, unigram
from openbook.text.formats.spaces import normalizer


class Algorithm(IntEnum):
    """`model_type` of the trainer."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model file says, as far as it bears on ids."""

    pieces: list[Piece]
    algorithm: Algorithm = Algorithm.UNIGRAM
    byte_fallback: bool = False
    names: dict[str, str] = field(default_factory=lambda: {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"})
    charsmap: bytes = b""
    spaces: Spaces = field(default_factory=Spaces)


def is_model(head: bytes) -> bool:
    """Whether a file that begins with `head` is a SentencePiece model: its first field is a piece with a text."""
    try:
        number, value = next(wire.fields(head))
        first = next(wire.fields(value)) if isinstance(value, bytes) and number == 1 else (0, b"")
    except (ValueError, StopIteration):
        return False
    return first[0] == 1 and isinstance(first[1], bytes)


def read(path: Path, beside: Settings) -> Found:
    """Read a model file, with what tokenizer_config.json beside it adds."""
    model = parse(read_bytes(path), path)
    return build(_renumbered(model, beside, path), beside, path)


def parse(data: bytes, path: Path) -> Model:
    """The model in `data`. TokenizerError: damaged."""
    model = Model(pieces=[])
    try:
        for number, value in wire.fields(data):
            if number == 1 and isinstance(value, bytes):
                model.pieces.append(_piece(value))
                if len(model.pieces) > MOST:
                    raise ValueError(f"it has more than {MOST} pieces")
            elif number == 2 and isinstance(value, bytes):
                model = _trainer(model, value)
            elif number == 3 and isinstance(value, bytes):
                model = _normalizer(model, value)
    except ValueError as error:
        raise damaged(path, f"it is no SentencePiece model ({error})") from error
    texts = {piece.text for piece in model.pieces}
    if not texts or len(texts) < len(model.pieces) or "" in texts:
        raise damaged(path, "its pieces must be different and not empty")
    if sum(piece.kind is Kind.UNKNOWN for piece in model.pieces) != 1:
        raise damaged(path, "it must have one unknown piece")
    return model


def build(model: Model, beside: Settings, path: Path) -> Found:
    """The tokenizer of `model`; TokenizerError where none has exactly its ids."""
    if model.algorithm is Algorithm.WORD:
        raise TokenizerError(f"'{path}' is a model of whole words (model_type WORD), which is not read here.")
    if any(piece.kind is Kind.UNUSED for piece in model.pieces):
        raise TokenizerError(f"'{path}' has unused pieces, which no tokenizer.json can say. Train it without them.")
    users = [piece.text for piece in model.pieces if piece.kind is Kind.USER]
    changed = [text for text in users if model.charsmap and changes(model.charsmap, text, path)]
    if changed:
        raise TokenizerError(
            f"The user-defined piece {changed[0]!r} in '{path}' is text that the model's own normalisation changes, "
            "except where it stands for the piece. No tokenizer.json can say that. Train it with the rule `identity`."
        )
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    specials = {p.text: ids[p.text] for p in model.pieces if p.kind in (Kind.CONTROL, Kind.UNKNOWN)}
    specials |= {token.content: number for number, token in beside.added.items()}
    specials |= _sentinels(beside, len(ids), path)
    roles = {role: Added(content=name) for role, name in model.names.items() if name in specials}
    unk = next(piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN)
    roles["unk"] = Added(content=unk)
    if model.algorithm is Algorithm.UNIGRAM:
        made = unigram(model.pieces, model.spaces, model.byte_fallback, path)
    else:
        chars = model.algorithm is Algorithm.CHAR
        made = byte_pairs(model.pieces, model.spaces, model.byte_fallback, path, single=chars)
    state = state_of(
        made.model,
        added=added_tokens(specials, {token.content: token for token in beside.added.values()}),
        normalizer=normalizer(model.charsmap, model.spaces, path, users),
        pre_tokenizer=made.pre_tokenizer,
        decoder=decoder(model.spaces, model.byte_fallback),
        around=_around(beside, specials, roles),
    )
    return Found(state=state, settings=Settings(roles=roles))


def _renumbered(model: Model, beside: Settings, path: Path) -> Model:
    """The model with the ids that its publisher gave the pieces, where those are not its own.

    fairseq puts four tokens of its own first, and the pieces after the model's first three behind them. That is how a
    `sentencepiece.bpe.model` is used, with different tokens; which, only `added_tokens_decoder` says.
    """
    first = {number: token.content for number, token in beside.added.items() if number < 4}
    own = [piece.text for piece in model.pieces[:3]]
    if [first.get(number) for number in range(4)] == _FAIRSEQ and own == ["<unk>", "<s>", "</s>"]:
        kinds = [Kind.CONTROL, Kind.CONTROL, Kind.CONTROL, Kind.UNKNOWN]
        front = [Piece(text, 0.0, kind) for text, kind in zip(_FAIRSEQ, kinds, strict=True)]
        return replace(model, pieces=[*front, *(piece for piece in model.pieces[3:] if piece.text != "<pad>")])
    named = {piece.text: number for number, piece in enumerate(model.pieces)}
    moved = [token.content for number, token in beside.added.items() if named.get(token.content, number) != number]
    if moved or (path.name == "sentencepiece.bpe.model" and not beside.added):
        raise TokenizerError(
            f"The ids of the pieces in '{path}' are not the model's own, and the files do not say which they are. Take "
            "the tokenizer.json, or give the model file under another name if its own ids are meant."
        )
    return model


_FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>"]


def _sentinels(beside: Settings, size: int, path: Path) -> dict[str, int]:
    """T5's tokens for what is left out of a text: `extra_ids` of them after the pieces, counted down."""
    count = beside.raw.get("extra_ids") or 0
    if type(count) is not int or not 0 <= count <= 1 << 12:
        raise TokenizerError(f"`extra_ids` must be a small number: got {count!r:.40} (beside '{path}'). Correct it.")
    return {f"<extra_id_{number}>": size + count - 1 - number for number in range(count)}


def _around(beside: Settings, ids: dict[str, int], roles: dict[str, Added]) -> Around | None:
    """What the configuration asks to put around a text; the model file itself asks for nothing."""

    def token(role: str) -> dict[str, int]:
        named = beside.roles.get(role, roles.get(role))
        asked = beside.raw.get(f"add_{role}_token") is True
        return {named.content: ids[named.content]} if asked and named and named.content in ids else {}

    first, last = token("bos"), token("eos")
    if beside.raw.get("extra_ids") and "eos" in roles:
        last = {roles["eos"].content: ids[roles["eos"].content]}
    pair = [beside.roles[role].content for role in ("cls", "sep") if role in beside.roles]
    if len(pair) == 2 and not (first or last) and all(name in ids for name in pair):
        first, last = ({name: ids[name]} for name in pair)
        return Around(before=first, after=last, between=last)
    return Around(before=first, after=last, between=first) if first or last else None


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in wire.fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")  # a UnicodeDecodeError is a ValueError
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if not math.isfinite(score):
        raise ValueError("a score is no number")
    return Piece(text, score, Kind(kind))


def _trainer(model: Model, data: bytes) -> Model:
    names = dict(model.names)
    for number, value in wire.fields(data):
        if isinstance(value, bytes):
            if number in _NAMES:
                names[_NAMES[number]] = value.decode("utf-8")
        elif number == 3:
            model = replace(model, algorithm=Algorithm(value))
        elif number == 24:
            model = replace(model, spaces=replace(model.spaces, suffix=bool(value)))
        elif number == 35:
            model = replace(model, byte_fallback=bool(value))
    return replace(model, names=names)


_NAMES = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}
_SPACES = {3: "dummy", 4: "collapse", 5: "escape"}


def _normalizer(model: Model, data: bytes) -> Model:
    spaces, charsmap = model.spaces, model.charsmap
    for number, value in wire.fields(data):
        if number == 2 and isinstance(value, bytes):
            charsmap = value
        elif number in _SPACES and isinstance(value, int):
            spaces = replace(spaces, **{_SPACES[number]: bool(value)})
    return replace(model, spaces=spaces, charsmap=charsmap)
