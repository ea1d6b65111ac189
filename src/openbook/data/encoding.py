"""Pieces of text → their ids, with bos and eos, and the records that shards keep of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openbook.data.shards import BEGINS, ENDS, PIECE
from openbook.text.engine import Ids, Places, in_a_row
from openbook.text.tokenizer import Tokenizer


class Encoder(Protocol):
    """What is asked of a tokenizer here; `openbook.text.tokenizer.Tokenizer` is one."""

    @property
    def vocab(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]: ...
    def token_bytes(self, number: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one."""

    text: str
    place: tuple[int, int, int]  # file, document in it, piece in that
    line: int  # where the document begins
    flags: int
    read: int  # bytes of all files read so far


@dataclass(frozen=True, slots=True)
class Encoded:
    """What some pieces became."""

    pieces: list[Piece]
    ids: NDArray[Any]  # of all pieces, bos and eos among them
    ends: Places  # where the ids of each piece begin; the last one's end
    records: NDArray[Any]  # [P] PIECE


def encode(pieces: list[Piece], tokenizer: Encoder, dtype: str) -> Encoded:
    """Ids and records of some pieces; bos stands before the first piece of a document, eos behind its last."""
    texts = [piece.text for piece in pieces]
    ids, places = _ids(tokenizer, texts)
    flags = np.array([piece.flags for piece in pieces], np.uint32)
    before = (flags & BEGINS > 0) & (tokenizer.bos is not None)
    after = (flags & ENDS > 0) & (tokenizer.eos is not None)
    sizes = np.diff(places) + before + after
    ends = np.concatenate([[0], np.cumsum(sizes)])
    whole = np.empty(ends[-1], dtype)
    plain = np.ones(len(whole), bool)
    for which, at, role in ((before, ends[:-1], tokenizer.bos), (after, ends[1:] - 1, tokenizer.eos)):
        if role is not None:
            plain[at[which]] = False
            whole[at[which]] = role
    whole[plain] = ids
    records = np.zeros(len(pieces), PIECE)
    data = [text.encode("utf-8") for text in texts]
    records["hash"] = [int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little") for part in data]
    records["tokens"], records["flags"], records["bytes"] = sizes, flags, [len(part) for part in data]
    begin = np.flatnonzero(~before & (sizes > 0))  # with text, of which the first id may hold a part
    firsts = whole[ends[begin]].tolist()
    leads = {number: len(tokenizer.token_bytes(number)) for number in set(firsts)}
    records["lead"][begin] = np.minimum([leads[number] for number in firsts], records["bytes"][begin])
    return Encoded(pieces, whole, ends, records)


def _ids(tokenizer: Encoder, texts: list[str]) -> tuple[Ids, Places]:
    """Ids of the texts one after the other, and where each begins; our own tokenizer makes no lists on the way."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.encode_arrays(texts)
    return in_a_row(tokenizer.encode_batch(texts))
