"""What turns text into ids: the native engine where it is exact, the `tokenizers` library everywhere else.

This is the one place of that choice, and it is made by what a tokenizer.json says: the native engine knows byte-level
byte-pair encoding without dropout, unknown tokens, prefixes and suffixes, split by patterns that `split.py` compiles,
with no normaliser, or with NFC. A text that it does not handle (a name that swallows the spaces beside it, a character
that NFC may change) goes to the library by itself. Both give the same ids: tests/laws/test_text_engine.py.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from openbook import runtime
from openbook.native import bpe
from openbook.text import characters
from openbook.text.backend import encoded
from openbook.text.pattern import Unsupported
from openbook.text.split import compile_steps

Ids = NDArray[np.uint32]
Places = NDArray[np.int64]
LONG = 1 << 13  # characters
BLOCK = 1 << 23  # characters that are encoded at once


class Engine:
    """Ids of text, nothing added before or after: those of `backend.encode(text, add_special_tokens=False)`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which must have a UTF-8 form."""
        if self._native is not None and (found := self._native.encode(text.encode())) is not None:
            ids: list[int] = found.tolist()
            return ids
        return self._theirs([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        if self._native is None:
            return self._theirs(texts)
        return [row.tolist() for block in blocks(texts) for row in self._rows(block)]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[Ids, Places]:
        """Ids of many texts one after the other, and where each begins and the last ends: [number of texts + 1]."""
        parts = [np.zeros(0, np.uint32)]
        sizes = [0]
        for block in blocks(texts):
            rows = self._rows(block)
            parts.append(np.concatenate(rows))
            sizes += map(len, rows)
        return np.concatenate(parts), np.cumsum(sizes, dtype=np.int64)

    def _rows(self, texts: list[str]) -> list[Ids]:
        """Ids of each text; what the native engine does not handle is given to the library."""
        native, rows = self._native, list[Ids | None]([None] * len(texts))
        if native is not None:
            rows = native.encode_many([text.encode() for text in texts], runtime.default_threads())
        left = [number for number, row in enumerate(rows) if row is None]
        theirs = iter(self._theirs([texts[number] for number in left]) if left else [])
        return [np.array(next(theirs), np.uint32) if row is None else row for row in rows]

    def _theirs(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1 and len(texts[0]) <= LONG:
            ids: list[int] = encoded(lambda: self._backend.encode(texts[0], add_special_tokens=False)).ids
            return [ids]  # as a batch it lets other threads of this process run meanwhile, at a price
        many = encoded(lambda: self._backend.encode_batch_fast(list(texts), add_special_tokens=False))
        return [found.ids for found in many]

    @cached_property
    def _native(self) -> bpe.Encoder | None:
        return native_encoder(self._backend)


def native_encoder(backend: tokenizers.Tokenizer) -> bpe.Encoder | None:
    """The native engine of a tokenizer that it is exact for; None for any other, and where there is no compiler."""
    library = bpe.library()
    if library is None:
        return None
    state = json.loads(backend.to_str())
    try:
        steps, prefix_space = compile_steps(state["pre_tokenizer"])
        bytes_ids = _bytes_ids(state["model"])
        composed = _composes(state["normalizer"])
        return bpe.Encoder(
            library,
            steps,
            _rules(state["model"]),
            bytes_ids,
            words=_words(state["model"]["vocab"]) if state["model"]["ignore_merges"] else None,
            added=_added(backend, state["added_tokens"], composed),
            prefix_space=prefix_space,
            refused=_not_surely_composed() if composed else None,
        )
    except Unsupported:
        return None


def train_merges(
    texts: Iterable[str], pre_tokenizer: dict[str, Any], vocab: int, least: int, specials: Sequence[str]
) -> tuple[dict[str, int], list[tuple[str, str]]] | None:
    """Vocabulary and merges of byte-level BPE trained on `texts`, the `specials` first; None without a compiler.

    `pre_tokenizer` is that of a tokenizer.json. What `tokenizers.trainers.BpeTrainer` gives with the whole alphabet of
    bytes and a minimal frequency of `least`; in memory are the distinct words, not the texts.
    """
    library = bpe.library()
    if library is None:
        return None
    spellings = [*specials, *sorted(ALPHABET)]
    bytes_ids = np.array([len(specials) + sorted(ALPHABET).index(char) for char in ALPHABET], np.uint32)
    counter = bpe.Counter(library, compile_steps(pre_tokenizer)[0])
    for block in blocks(texts):
        fine = counter.add([text.encode() for text in block], runtime.default_threads())
        assert fine, "our own pattern asks little"
    rules = counter.train(vocab, least, [_spelled(special) or b"" for special in specials], bytes_ids)
    ranks: dict[tuple[str, str], None] = {}
    for left, right, made in zip(*(part.tolist() for part in rules), strict=True):
        pair = spellings[left], spellings[right]
        if made == len(spellings):
            spellings.append("".join(pair))
        ranks.pop(pair, None)  # of two rules for a pair the later one counts
        ranks[pair] = None
    return {spelling: number for number, spelling in enumerate(spellings)}, list(ranks)


def in_a_row(rows: Sequence[Sequence[int]]) -> tuple[Ids, Places]:
    """Lists of ids as `encode_arrays` gives them."""
    places = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(places[-1])), places


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Groups of texts that are worth handing over together."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


# ------------------------------------------------------------------------------------------------ what a file says


def _alphabet() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    shown = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    hidden = iter(range(256, 512))
    letters = [chr(byte if byte in shown else next(hidden)) for byte in range(256)]
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters


ALPHABET = _alphabet()
_BYTES = dict.fromkeys(range(256), 0xFFFF) | {ord(char): byte for byte, char in enumerate(ALPHABET)}


def _spelled(token: str) -> bytes | None:
    """The bytes of a token; None for one that is not spelled in the alphabet of bytes."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _bytes_ids(model: dict[str, Any]) -> Ids:
    """Ids of the 256 bytes, when the model is byte-level BPE of the usual kind."""
    odd = [model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")]
    if model["type"] != "BPE" or any(odd) or len(set(model["vocab"].values())) < len(model["vocab"]):
        raise Unsupported("a model of another kind")
    ids = [model["vocab"].get(char, bpe.NO_ID) for char in ALPHABET]
    if bpe.NO_ID in ids and (model.get("unk_token") is not None or model.get("byte_fallback")):
        raise Unsupported("bytes that have no token of their own")
    return np.array(ids, np.uint32)


def _rules(model: dict[str, Any]) -> bpe.Rules:
    vocab = model["vocab"]
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    rows = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
    columns = np.array(rows, np.uint32).reshape(-1, 3).T
    return bpe.Rules(*map(np.ascontiguousarray, columns))


def _words(vocab: dict[str, int]) -> tuple[list[bytes], list[int]]:
    spelled = [(spelling, number) for token, number in vocab.items() if (spelling := _spelled(token))]
    return [spelling for spelling, _ in spelled], [number for _, number in spelled]


def _added(backend: tokenizers.Tokenizer, tokens: list[dict[str, Any]], composed: bool) -> bpe.Added:
    tokens = [token for token in tokens if token["content"]]
    if composed and not all(token["content"].isascii() for token in tokens if token["normalized"]):
        raise Unsupported("added tokens that are normalised too")
    swallows = [token["single_word"] or token["lstrip"] or token["rstrip"] for token in tokens]
    kinds = [token["normalized"] + 2 * swallow for token, swallow in zip(tokens, swallows, strict=True)]
    ids = [int(backend.token_to_id(token["content"]) or 0) for token in tokens]  # each is in the vocabulary
    return bpe.Added([token["content"].encode() for token in tokens], ids, kinds)


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """Whether the normaliser is NFC. Raises Unsupported for one that is more."""
    if normalizer is not None and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
        if len(steps) > 1:
            raise Unsupported("several normalisers")
        normalizer = steps[0] if steps else None
    if normalizer is not None and normalizer["type"] != "NFC":
        raise Unsupported("another normaliser")
    return normalizer is not None


def _not_surely_composed() -> NDArray[np.bool_]:
    """The code points that NFC changes, or joins to what stands before them, or that may be of either kind.

    Marks and the vowels and finals of Hangul join; letters of scripts beyond the first plane are not asked after.
    """
    kinds = [characters.CATEGORIES.index(kind) for kind in ("Mn", "Mc", "Me", "Cn", "Cs")]
    refused = np.isin(characters.values("category"), kinds)
    refused[0x1100:0x1200] = refused[0x10000:0x1F000] = refused[0x20000:] = True
    codes = np.flatnonzero(~refused[0x80:0x10000]) + 0x80
    refused[[code for code in codes.tolist() if not _stays(chr(code))]] = True
    return refused


def _stays(char: str) -> bool:
    return unicodedata.category(char) != "Cn" and unicodedata.normalize("NFC", char) == char
