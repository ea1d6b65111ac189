"""The interface of bpe.cpp: its structures, the loaded library, and arrays in and out. No torch, no tokenizer."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from openbook.native import build

SOURCES = ("bpe.cpp", "bpe_split.h", "bpe_merge.h", "bpe_train.h")
NO_ID = 0xFFFFFFFF
WORTH_A_THREAD = 1 << 16  # bytes of text

U32 = NDArray[np.uint32]


class Given(ctypes.Structure):
    """bpe_split.h's `struct Given`."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("nodes", "branches", "pages", "masks")),
        *((n, ctypes.c_int64) for n in ("node_count", "branch_count", "mask_count", "keep_matches", "keep_rest")),
    )


class Setup(ctypes.Structure):
    """bpe.cpp's `struct Setup`."""

    _fields_ = (
        ("steps", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("step_count", "merge_count", "word_count", "added_count")),
        *((n, ctypes.c_int64) for n in ("prefix_space", "whole_words")),
        *((n, ctypes.c_void_p) for n in ("left", "right", "made", "bytes", "words", "words_ends", "words_ids")),
        *((n, ctypes.c_void_p) for n in ("added", "added_ends", "added_ids", "added_kinds", "refused")),
    )


class Taught(ctypes.Structure):
    """bpe_train.h's `struct Taught`."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("vocab", "least", "special_count")),
        *((n, ctypes.c_void_p) for n in ("specials", "specials_ends", "bytes")),
    )


class Step(Protocol):
    """A program of text/split.py."""

    @property
    def nodes(self) -> NDArray[np.int32]: ...
    @property
    def branches(self) -> NDArray[np.int32]: ...
    @property
    def pages(self) -> NDArray[np.uint16]: ...
    @property
    def masks(self) -> NDArray[np.uint64]: ...
    @property
    def keep_matches(self) -> bool: ...
    @property
    def keep_rest(self) -> bool: ...


class Rules(NamedTuple):
    """Merges in the order of their ranks: ids of the two parts and of what they become."""

    left: U32
    right: U32
    made: U32


class Added(NamedTuple):
    """Names that are tokens wherever a text holds them."""

    names: Sequence[bytes]
    ids: Sequence[int]
    kinds: Sequence[int]  # 0: found first; 1: found in what is left; +2: a text that holds it is not handled


@functools.cache
def library() -> ctypes.CDLL | None:
    """The engine; None (said once) where it cannot be had."""
    if not build.wanted():
        return None
    found = build.load("bpe", SOURCES, [()])
    return None if found is None else declared(found)


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions."""
    word, address = ctypes.c_int64, ctypes.c_void_p
    interfaces: list[tuple[Any, list[Any], Any]] = [
        (found.openbook_bpe_make, [address], address),
        (found.openbook_bpe_free, [address], None),
        (found.openbook_bpe_encode, [address, word, *[address] * 5, word], None),
        (found.openbook_bpe_counter, [address, word], address),
        (found.openbook_bpe_counter_free, [address], None),
        (found.openbook_bpe_count, [address, word, address, address, word], word),
        (found.openbook_bpe_train, [*[address] * 5, word], word),
    ]
    for function, arguments, answer in interfaces:
        function.argtypes, function.restype = arguments, answer
    return found


class Encoder:
    """Texts to ids, by one vocabulary."""

    def __init__(
        self,
        found: ctypes.CDLL,
        steps: Sequence[Step],
        rules: Rules,
        bytes_ids: U32,
        *,
        words: tuple[Sequence[bytes], Sequence[int]] | None = None,
        added: Added | None = None,
        prefix_space: bool = False,
        refused: NDArray[np.bool_] | None = None,
    ) -> None:
        """bytes_ids: [256] ids of the bytes, NO_ID for one that is dropped. words: what is looked up as a whole before
        it is merged. refused: for each code point whether a text that holds it is not handled here."""
        spellings, numbers = words or ([], [])
        names, ids, kinds = added or ([], [], [])
        kept: list[Any] = [_given(steps), *rules, bytes_ids, *_joined(spellings), np.array(numbers, np.uint32)]
        kept += [*_joined(names), np.array(ids, np.uint32), np.array(kinds, np.uint8)]
        kept += [None if refused is None else np.packbits(refused, bitorder="little")]
        sizes = len(steps), len(rules.left), len(spellings), len(names), prefix_space, words is not None
        setup = Setup(ctypes.addressof(kept[0]), *sizes, *map(_address, kept[1:]))
        self._address = found.openbook_bpe_make(ctypes.addressof(setup))
        self._call = found.openbook_bpe_encode
        self._bytes_of_room = 2 if prefix_space else 1
        weakref.finalize(self, found.openbook_bpe_free, self._address)

    def encode(self, text: bytes) -> U32 | None:
        """Ids of one text (UTF-8); None where it is not handled here."""
        out = np.empty(len(text) * self._bytes_of_room + 8, np.uint32)
        fixed = (ctypes.c_int64 * 3)(len(text))
        begin = ctypes.addressof(fixed)
        pointer = (ctypes.c_char_p * 1)(text)
        self._call(self._address, 1, pointer, begin, _address(out), begin + 8, begin + 16, 1)
        return out[: fixed[2]] if fixed[2] >= 0 else None

    def encode_many(self, texts: Sequence[bytes], threads: int) -> list[U32 | None]:
        """Ids of each of some texts (UTF-8); None where it is not handled here. The rows share their memory."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        room = sizes * self._bytes_of_room + 8
        places = np.cumsum(room) - room
        out = np.empty(int(room.sum()), np.uint32)
        counts = np.empty(len(texts), np.int64)
        pointers = (ctypes.c_char_p * len(texts))(*texts)
        arrays = [array.ctypes.data for array in (sizes, out, places, counts)]
        self._call(self._address, len(texts), pointers, *arrays, _threads(threads, sizes))
        found = zip(places.tolist(), counts.tolist(), strict=True)
        return [None if count < 0 else out[place : place + count] for place, count in found]


class Counter:
    """Words of texts and how often they come, then the merges that are trained on them."""

    def __init__(self, found: ctypes.CDLL, steps: Sequence[Step]) -> None:
        self._library = found
        given = _given(steps)
        self._address = found.openbook_bpe_counter(ctypes.addressof(given), len(steps))
        weakref.finalize(self, found.openbook_bpe_counter_free, self._address)

    def add(self, texts: Sequence[bytes], threads: int) -> bool:
        """Count the words of some more texts (UTF-8). False: the pattern asks too much of one."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        pointers = (ctypes.c_char_p * len(texts))(*texts)
        used = _threads(threads, sizes)
        fine: int = self._library.openbook_bpe_count(self._address, len(texts), pointers, _address(sizes), used)
        return bool(fine)

    def train(self, vocab: int, least: int, specials: Sequence[bytes], bytes_ids: U32) -> Rules:
        """Merges until there are `vocab` ids or no pair comes `least` times."""
        text, ends = _joined(specials)
        taught = Taught(vocab, least, len(specials), *(array.ctypes.data for array in (text, ends, bytes_ids)))
        room = vocab * 2
        left, right, made = (np.empty(room, np.uint32) for _ in range(3))
        arrays = [array.ctypes.data for array in (left, right, made)]
        count = self._library.openbook_bpe_train(self._address, ctypes.addressof(taught), *arrays, room)
        return Rules(left[:count], right[:count], made[:count])


def _given(steps: Sequence[Step]) -> ctypes.Array[Given]:
    """The structures of programs, whose arrays must live as long as they are read."""
    made = (Given * max(len(steps), 1))()
    for place, step in zip(made, steps, strict=False):
        for name in ("nodes", "branches", "pages", "masks"):
            setattr(place, name, getattr(step, name).ctypes.data)
        place.node_count, place.branch_count, place.mask_count = len(step.nodes), len(step.branches), len(step.masks)
        place.keep_matches, place.keep_rest = step.keep_matches, step.keep_rest
    return made


def _threads(most: int, sizes: NDArray[np.int64]) -> int:
    return max(1, min(most, int(sizes.sum()) // WORTH_A_THREAD))


def _joined(texts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.frombuffer(b"".join(texts) or b"\0", np.uint8), np.cumsum([len(text) for text in texts], dtype=np.int64)


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
