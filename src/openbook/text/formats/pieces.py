"""SentencePiece's pieces as a model of the backend: byte-pair encoding by scores, or a unigram model.

A piece is normal text; or the unknown piece; or a control piece, which no text makes; or user-defined, which text
always makes; or unused; or one byte of a character that no piece has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from openbook.errors import TokenizerError
from openbook.text.formats.found import State, bpe, sequence, split
from openbook.text.formats.merges import in_order, last_pairs, segment

SPACE = "▁"  # how a piece writes a space


class Kind(IntEnum):
    """`type` of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """What happens to spaces: a dummy before a text (or after it), runs collapsed and ends trimmed, written as ▁."""

    dummy: bool = True
    collapse: bool = True
    escape: bool = True
    suffix: bool = False


class Made(NamedTuple):
    """A model of the backend with the splitting that goes before it."""

    model: State
    pre_tokenizer: State | None


def byte_pairs(
    pieces: Sequence[Piece], spaces: Spaces, byte_fallback: bool, where: Path, *, single: bool = False
) -> Made:
    """Byte-pair encoding in which the neighbours whose join has the highest score are merged first.

    User-defined pieces are cut out of the text before, and looked up whole. `single`: nothing is merged.
    """
    vocab = {piece.text: number for number, piece in enumerate(pieces)}
    normal = {piece.text: -piece.score for piece in pieces if piece.kind is Kind.NORMAL}
    users = [piece.text for piece in pieces if piece.kind is Kind.USER]
    unk = next(piece.text for piece in pieces if piece.kind is Kind.UNKNOWN)
    long = [text for text in normal if len(text) > 1]
    pairs = {} if single else last_pairs(long, normal, where)
    for pair in pairs.values():
        for part in pair:
            if part not in normal:
                raise TokenizerError(
                    f"The piece {''.join(pair)!r} in '{where}' holds {part!r}, which is no piece of its own: no list "
                    "of merges can say how it is made. Add that character to the vocabulary."
                )
    steps = [split(_any_of(users))] if users else []
    steps += _words(normal, spaces)
    if users:
        steps += _kept_apart(pieces, normal, pairs, where)
    merges = in_order(pairs, normal, where)
    model = bpe(vocab, merges, whole_first=bool(users), unk=unk, byte_fallback=byte_fallback)
    return Made(model, sequence("pretokenizers", steps))


def unigram(pieces: Sequence[Piece], spaces: Spaces, byte_fallback: bool, where: Path) -> Made:
    """The likeliest segmentation; user-defined pieces are likely beyond all others, with a score of 0.

    SentencePiece adds up scores in single precision, the backend in double: of segmentations that are equally likely
    (`a aa` and `aa a`) either may be taken where the sums round differently. No tokenizer.json can say this.
    """
    normal = {piece.text: piece.score for piece in pieces if piece.kind is Kind.NORMAL}
    lowest = min(normal.values(), default=0.0)
    users = {piece.text: piece.score for piece in pieces if piece.kind is Kind.USER}
    scores = {**{piece.text: lowest for piece in pieces}, **normal, **users}
    steps = []
    if byte_fallback:  # the name of a byte in a text is text: it is cut where no piece reaches across
        if any("<0" in text for text in [*normal, *users]):
            raise TokenizerError(f"A piece of '{where}' holds '<0', as the names of bytes do. Rename that piece.")
        steps.append(split(r"<(?=0x[0-9A-F]{2}>)"))
    model = {
        "type": "Unigram",
        "unk_id": next(number for number, piece in enumerate(pieces) if piece.kind is Kind.UNKNOWN),
        "vocab": [[piece.text, scores[piece.text]] for piece in pieces],
        "byte_fallback": byte_fallback,
    }
    steps += _words([*normal, *users], spaces)
    return Made(model, sequence("pretokenizers", steps))


def decoder(spaces: Spaces, byte_fallback: bool) -> State | None:
    """From pieces to text: ▁ is a space, the dummy is taken away again."""
    steps: list[State] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}] if spaces.escape else []
    steps += [{"type": "ByteFallback"}] if byte_fallback else []
    steps.append({"type": "Fuse"})
    if (spaces.dummy or spaces.collapse) and spaces.escape:
        count = 1 << 10 if spaces.collapse else 1  # where spaces collapse, none is left in front
        ends = {"start": 0, "stop": 1} if spaces.suffix else {"start": count, "stop": 0}
        steps.append({"type": "Strip", "content": " ", **ends})
    return sequence("decoders", steps)


def _words(texts: Iterable[str], spaces: Spaces) -> list[State]:
    """Cut text into words where no piece reaches across, which changes no id and lets the backend remember words."""
    known = set(texts)
    if not spaces.escape or SPACE not in known:
        return []
    if not any(re.search(f"[^{SPACE}]{SPACE}", text) for text in known):
        return [split(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")]
    if not any(re.search(f"{SPACE}[^{SPACE}]", text) for text in known):
        return [split(f"[^{SPACE}]*{SPACE}+|[^{SPACE}]+")]
    return []


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


def _kept_apart(
    pieces: Sequence[Piece], normal: Mapping[str, float], pairs: Mapping[str, tuple[str, str]], where: Path
) -> list[State]:
    """A cut through each entry that merging does not make, where it stands alone: it would be looked up whole."""
    cuts: dict[str, list[str]] = {}
    entries = {piece.text for piece in pieces}
    for piece in pieces:
        text = piece.text
        if len(text) == 1 or text in pairs or piece.kind not in (Kind.NORMAL, Kind.BYTE):
            continue
        parts = segment(list(text), normal)
        rest = text[len(parts[0]) :]
        if len(parts) > 2 and rest in entries:
            raise TokenizerError(f"The piece {text!r} in '{where}' is never made. Leave it out of the vocabulary.")
        cuts.setdefault(parts[0], []).append(rest)
    if not cuts:
        return []
    branches = [f"{re.escape(head)}(?=(?:{_any_of(rests)})\\z)" for head, rests in cuts.items()]
    return [split(rf"\A(?:{'|'.join(branches)})")]
