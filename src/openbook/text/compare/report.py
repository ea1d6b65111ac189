"""Tokenizers side by side: what one makes of a text, as numbers, and a table of several."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbook.text.compare.counting import Count, grouped
from openbook.text.compare.languages import Language, measure_languages
from openbook.text.compare.splits import NUMBERS, OPERATORS, Splits, split
from openbook.text.compare.words import Words, cut_words
from openbook.text.tokenizer import Tokenizer

EXAMPLE = 40  # characters of what a round trip changed
WIDEST = 26  # characters of a probe in pieces; of more pieces the number is said
LOST = 0.01  # part of unknown tokens in a language from which on its other numbers say nothing


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a tokenizer made of a text."""

    counted: Count
    seen: int  # ids of the vocabulary that occur
    unknown: int  # unknown tokens
    changed: int  # documents that come back otherwise
    example: str  # where the first of them differs: what it was → what it became
    seconds: float  # of encoding


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One tokenizer, measured."""

    name: str
    vocab: int
    specials: int
    fingerprint: str
    use: Use
    words: Words
    splits: Splits
    languages: tuple[Language, ...]

    @property
    def unused(self) -> float:
        """The part of the vocabulary, special tokens apart, that the text does not use: from 0 to 1."""
        return 1 - self.use.seen / max(1, self.vocab - self.specials)

    @property
    def speed(self) -> float:
        """MB of text a second; rough: measured once, while whatever else was running."""
        return self.use.counted.bytes / 1e6 / max(self.use.seconds, 1e-9)

    @property
    def dearest(self) -> Language | None:
        """The language with the highest parity."""
        known = [one for one in self.languages if one.parity is not None]
        return max(known, key=lambda one: one.parity or 0.0, default=None)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "vocab": self.vocab,
            "fingerprint": self.fingerprint,
            **self.use.counted.plain(),
            "fertility": self.words.fertility,
            "continued": self.words.share_continued,
            "unused_vocabulary": round(self.unused, 6),
            "unknown_tokens": self.use.unknown,
            "changed_by_a_round_trip": self.use.changed,
            "first_change": self.use.example,
            "rough_megabytes_per_second": round(self.speed, 2),
            "splits": self.splits.plain(),
            "languages": {one.name: one.plain() for one in self.languages},
        }


def measure(
    name: str, tokenizer: Tokenizer, texts: Sequence[str], words: Counter[str], languages: Mapping[str, str]
) -> Measured:
    """Measure `tokenizer` on `texts`, whose `words` were counted once for all tokenizers, and on `languages`."""
    return Measured(
        name=name,
        vocab=tokenizer.vocab,
        specials=len(tokenizer.specials),
        fingerprint=tokenizer.fingerprint,
        use=use(tokenizer, texts),
        words=cut_words(tokenizer, words),
        splits=split(tokenizer),
        languages=tuple(measure_languages(tokenizer, languages)),
    )


def use(tokenizer: Tokenizer, texts: Iterable[str]) -> Use:
    """Encode `texts`, decode them again, and look at what became of them."""
    counted = Count()
    ids_seen: Counter[int] = Counter()
    changed = 0
    example = ""
    seconds = 0.0
    tokenizer.encode("the first text pays for what is built once")
    for group in grouped(texts):
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(group)
        seconds += time.perf_counter() - start
        for text, ids in zip(group, encoded, strict=True):
            counted += Count(documents=1, bytes=len(text.encode()), characters=len(text), tokens=len(ids))
            ids_seen.update(ids)
            if (back := tokenizer.decode(ids, skip_specials=False)) != text:
                changed += 1
                example = example or _difference(text, back)
    ordinary = ids_seen.keys() - set(tokenizer.specials.values())
    unknown = 0 if tokenizer.unk is None else ids_seen[tokenizer.unk]
    return Use(counted=counted, seen=len(ordinary), unknown=unknown, changed=changed, example=example, seconds=seconds)


def _difference(text: str, back: str) -> str:
    """The first place where `back` is not `text`."""
    at = next((i for i, (one, other) in enumerate(zip(text, back, strict=False)) if one != other), None)
    start = max(0, (min(len(text), len(back)) if at is None else at) - EXAMPLE // 4)
    return f"{text[start : start + EXAMPLE]!r} → {back[start : start + EXAMPLE]!r}"


# ------------------------------------------------------------------------------------------------ as a table

Row = tuple[str, Callable[[Measured], str]]


def table(measured: Sequence[Measured]) -> str:
    """One column for each tokenizer; languages and probes below."""
    first = measured[0]
    charged: list[Row] = [(f"  {one.name}", _language(i)) for i, one in enumerate(first.languages)]
    numbers: list[Row] = [(f"  {number}", _number(number)) for number in NUMBERS]
    names: list[Row] = [(f"  {name}", _name(name)) for name in first.splits.names]
    blocks: list[list[Row]] = [
        [("", lambda m: m.name[-WIDEST:]), *_GENERAL],
        [("tokens against English · per word", _nothing), *charged] if charged else [],
        [("numbers", lambda m: m.splits.grouping), *numbers],
        [("code", lambda m: f"{m.splits.code_bytes_per_token:.2f} bytes/token"), *_CODE],
        [("names", _nothing), *names],
    ]
    cells = [[[label, *(cell(one) for one in measured)] for label, cell in block] for block in blocks if block]
    wide = [max(len(line[column]) for block in cells for line in block) for column in range(len(measured) + 1)]
    return "\n\n".join("\n".join(_line(line, wide) for line in block) for block in cells)


def _line(cells: Sequence[str], wide: Sequence[int]) -> str:
    label, *rest = cells
    return "  ".join([f"{label:<{wide[0]}}", *(f"{cell:>{width}}" for cell, width in zip(rest, wide[1:], strict=True))])


def _nothing(_: Measured) -> str:
    return ""


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _per_word(words: Words) -> str:
    return "–" if words.fertility is None else f"{words.fertility:.2f}"


def _language(index: int) -> Callable[[Measured], str]:
    def cell(measured: Measured) -> str:
        one = measured.languages[index]
        parity = "–" if one.parity is None else f"{one.parity:.2f}×"
        said = f"{parity} · {_per_word(one.words)}"
        return f"{one.lost:.0%} unknown" if one.lost > LOST else said

    return cell


def _number(number: str) -> Callable[[Measured], str]:
    return lambda measured: _joined(measured.splits.numbers[number])


def _name(name: str) -> Callable[[Measured], str]:
    return lambda measured: _joined(measured.splits.names[name])


def _joined(pieces: Sequence[str]) -> str:
    return said if len(said := "|".join(pieces)) <= WIDEST else f"{len(pieces)} tokens"


_GENERAL: list[Row] = [
    ("vocabulary", lambda m: f"{m.vocab:,}"),
    ("tokens", lambda m: f"{m.use.counted.tokens:,}"),
    ("bytes per token", lambda m: f"{m.use.counted.bytes_per_token:.2f}"),
    ("tokens per word", lambda m: _per_word(m.words)),
    ("continued words", lambda m: _share(m.words.share_continued)),
    ("vocabulary unused", lambda m: _share(m.unused)),
    ("unknown tokens", lambda m: f"{m.use.unknown:,}"),
    ("changed by a round trip", lambda m: f"{m.use.changed:,} of {m.use.counted.documents:,}"),
    ("encoding, MB/s (rough)", lambda m: f"{m.speed:.1f}"),
    ("digits per token", lambda m: f"{m.splits.digits_per_token:.2f}"),
]
_CODE: list[Row] = [
    (
        "  tokens to indent by 4, 8, 12",
        lambda m: ", ".join(str(count) if count else "lost" for count in m.splits.indents.values()),
    ),
    ("  operators in one token", lambda m: f"{len(m.splits.operators)} of {len(OPERATORS)}"),
]
