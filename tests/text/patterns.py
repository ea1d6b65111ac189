"""The split patterns of published byte-level tokenizers, vocabularies that follow no order, and texts to try."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from openbook.text.engine import ALPHABET
from openbook.text.training import SPLIT

_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER_NOT_HAN, _LOWER_NOT_HAN = (kind[:-1] + r"&&[^\p{Han}]]" for kind in (_UPPER, _LOWER))
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS = {
    "ours": [SPLIT],
    "gpt2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
    "cl100k": [rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"],
    "possessive": [
        rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$|{_LINES}"
    ],
    "qwen2": [rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"],
    "o200k": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
    ],
    "tekken": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"
    ],
    "kimi": [
        rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}*{_LOWER_NOT_HAN}+{_ENDS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}+{_LOWER_NOT_HAN}*{_ENDS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES}"
    ],
    "deepseek": [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
        + _LINES,
    ],
    "deepseek_coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits", "bytes"],
    "starcoder": ["digits", "words"],
    "olmo": ["[0-9][0-9][0-9]", "words"],
    "bloom": [" ?[^(\\s|[.,!?…。，、।۔،])]+"],
    "none": [],
}  # fmt: skip


def pre_tokenizer(name: str, *, prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    """The steps of a pattern, the last of them to bytes."""
    steps: list[Any] = []
    patterns = PATTERNS[name]
    for pattern in patterns:
        if pattern == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif pattern not in ("words", "bytes"):
            steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex="words" in patterns))
    return pre_tokenizers.Sequence(steps)


PARTS = [
    "a", "b", "the", " the", "The", "THE", "x", "'s", "'S", "'ſ", "'t", "'ll", "'LL", "'re", "'d", "’s",
    "n't", " ", "  ", "   ", "\n", "\r\n", "\r", "\n\n", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0",
    "\u2003", "\u2028", "\u3000", "\u200b", "\ufeff", "\x00", "\x07", "\x7f", "\xad", "1", "12", "123",
    "1234", "٣", "½", "Ⅷ", "²", "①", "१२", "𝟗", ".", ",", "!", "...", "?!", "-", "—", "/", "//", "$", "€",
    "+", "<|end|>", "<", "|", ">", "_", "#", "(", ")", "[", "]", "é", "e\u0301", "ñ", "ß", "ẞ", "ı", "İ", "ǅ",
    "ʰ", "ª", "ﬀ", "ﬆ", "ä", "a\u0308\u0323", "\u0d15\u0d4d\u0d37\u0d3f",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "مرحبا", "שלום", "你好",
    "中", "日本語", "カタカナ", "ﾊﾝ", "한국어", "한", "각", "😀", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "🇩🇪",
    "\u2764\ufe0f", "𐐀", "𝒳", "\u0345", "\U000e0001", "\u0378", "\U0010ffff", "\ue000", "�", "🇦", "\u180e",
    "\U00016d67", "\U00011de0", "K", "Å",
]  # fmt: skip


def texts(seed: int, count: int, parts: int = 40) -> Iterator[str]:
    """Texts that put unlike things side by side, with runs of one thing, and a few characters from anywhere."""
    draw = random.Random(seed)
    for _ in range(count):
        some = draw.sample(PARTS, draw.choice((3, 8, len(PARTS))))
        text = ""
        for _ in range(draw.randrange(1, parts)):
            kind = draw.random()
            if kind < 0.85:
                text += draw.choice(some) * (1 if kind < 0.8 else draw.randrange(2, 70))
            else:
                code = draw.randrange(0x110000 if kind < 0.95 else 0x3000)
                text += "" if 0xD800 <= code < 0xE000 else chr(code)
        yield text


def vocabulary(seed: int, size: int, *, whole: bool = False, missing: int = 0) -> models.BPE:
    """Byte-level BPE whose merges follow no order of making: parts may have a later rank than what is made of them."""
    draw = random.Random(seed)
    sample = "".join("".join(ALPHABET[byte] for byte in text.encode()) for text in texts(seed, 60))
    merges: dict[tuple[str, str], None] = {}
    gone = set(draw.sample(ALPHABET, missing))

    def make(token: str) -> None:
        if len(token) > 1:
            at = draw.randrange(1, len(token))
            make(token[:at])
            make(token[at:])
            merges[token[:at], token[at:]] = None

    while len(merges) < size:
        at = draw.randrange(len(sample))
        token = sample[at : at + draw.randrange(2, 9)]
        if not gone & set(token):
            make(token)
    for left, right in pairwise(sample):  # so that every border between words shows
        if not gone & {left, right}:
            merges[left, right] = None
    rules = list(merges)
    draw.shuffle(rules)
    names = list(dict.fromkeys([*(char for char in ALPHABET if char not in gone), *map("".join, rules)]))
    draw.shuffle(names)
    return models.BPE({name: number for number, name in enumerate(names)}, rules, ignore_merges=whole)


def tokenizer(name: str, seed: int, size: int = 300, **options: Any) -> Tokenizer:
    """A tokenizer with a pattern and a random vocabulary."""
    made = Tokenizer(vocabulary(seed, size, **options))
    made.pre_tokenizer = pre_tokenizer(name)
    return made


def from_ranks(path: Path, specials: Mapping[str, int]) -> models.BPE:
    """The model of a rank file of tiktoken: a token is merged from the two parts that lower ranks make of it."""
    rows = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[at : at + 1] for at in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            at = min(range(len(joined)), key=joined.__getitem__)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(("".join(ALPHABET[byte] for byte in parts[0]), "".join(ALPHABET[byte] for byte in parts[1])))
    vocab = {"".join(ALPHABET[byte] for byte in token): rank for token, rank in ranks.items()}
    return models.BPE(vocab | specials, merges)
