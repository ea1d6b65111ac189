"""Training a tokenizer, of one of three kinds.

bpe        byte-level byte-pair encoding (Sennrich et al. 2016; bytes: Radford et al. 2019). Text is split into words, a
           word into its bytes, and the most frequent pair of neighbours becomes a new token until the vocabulary is
           full. With all 256 bytes in it every string can be encoded and decodes to itself.
wordpiece  see pieces.py, as encoders in the line of BERT read text
unigram    see pieces.py, as sentencepiece makes them
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, SupportsIndex

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from openbook.errors import TokenizerError, nearest
from openbook.text import pieces
from openbook.text.engine import train_merges
from openbook.text.folder import Added
from openbook.text.sealed import checked_text

Kind = Literal["bpe", "wordpiece", "unigram"]

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "bpe": SPECIALS,
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<unk>", *SPECIALS),
}

# Where training splits text before it merges, so that no token crosses a word: contractions; a word with the one space
# or sign before it (marks belong to the letters they sit on); up to three digits; signs; line ends; runs of space.
SPLIT = (
    r"'(?i:s|t|re|ve|m|ll|d)(?!\p{L})"
    r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

LARGEST = 1 << 24  # ids: what is asked for is made room for, and nobody has a text for more
FREQUENT = 2  # how often a pair must come to become a token

_ROLE_NAMES = {
    "bos": ("bos", "s", "startoftext", "beginoftext"),
    "eos": ("eos", "/s", "endoftext"),
    "pad": ("pad",),
    "unk": ("unk",),
    "mask": ("mask",),
    "sep": ("sep",),
    "cls": ("cls",),
}


def specials_for(kind: Kind, specials: Sequence[str] | None) -> tuple[str, ...]:
    """The special tokens of a tokenizer of this kind, with one for what it cannot spell where it needs one.

    TokenizerError: an unknown kind, two that are equal, one of a single character.
    """
    if kind not in DEFAULTS:
        raise TokenizerError(
            f"`kind` must be one of {', '.join(DEFAULTS)}: got {kind!r}.{nearest(str(kind), DEFAULTS)}"
        )
    chosen = DEFAULTS[kind] if specials is None else tuple(map(checked_text, specials))
    if any(len(special) < 2 for special in chosen) or len(set(chosen)) != len(chosen):
        raise TokenizerError(
            f"`specials` must be different strings of two or more characters: got {list(chosen)!r}. "
            "A single character is needed to write text with."
        )
    if kind == "bpe" or "unk" in roles_of(chosen):
        return chosen
    return (*chosen, "[UNK]" if kind == "wordpiece" else "<unk>")


def train_backend(
    kind: Kind, texts: Iterable[str], vocab: int, specials: Sequence[str], *, closed: bool, lowercase: bool
) -> tokenizers.Tokenizer:
    """A trained tokenizer of this kind. See `Tokenizer.train`."""
    if not isinstance(vocab, SupportsIndex) or isinstance(vocab, bool) or vocab > LARGEST:
        raise TokenizerError(f"`vocab` is a whole number up to {LARGEST}: got {vocab!r}.")
    if lowercase and kind != "wordpiece":
        raise TokenizerError(f"`lowercase` is for kind='wordpiece': a {kind} tokenizer keeps text as it is.")
    if kind == "bpe":
        return train_bpe(texts, vocab, specials, closed)
    counted = _Counted(texts)
    roles = roles_of(specials)
    unknown = roles["unk"].content
    if kind == "wordpiece":
        backend = pieces.wordpiece_backend(counted, vocab, specials, unknown, lowercase)
        first, last = roles.get("cls") or roles.get("bos"), roles.get("sep") or roles.get("eos")
    else:
        backend = pieces.unigram_backend(counted, vocab, specials, unknown, SPLIT)
        first, last = roles.get("bos"), roles.get("eos") if closed else None
    put_around(backend, first, last)
    return backend


def train_bpe(texts: Iterable[str], vocab: int, specials: Sequence[str], closed: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE with at most `vocab` ids, `specials` first, and the bos token, if any, before a prompt.

    With `closed`, the eos token stands after it.

    TokenizerError: too small a vocabulary, no text.
    """
    smallest = 256 + len(specials)
    if vocab < smallest:
        raise TokenizerError(
            f"`vocab` is too small: got {vocab}, but 256 bytes and {len(specials)} special tokens need {smallest}. "
            f"Use {smallest} or more."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    counted = _Counted(texts)
    _train(backend, counted, vocab, specials)
    counted.check()
    roles = roles_of(specials)
    put_around(backend, roles.get("bos"), roles.get("eos") if closed else None)
    return backend


def _train(backend: tokenizers.Tokenizer, texts: Iterable[str], vocab: int, specials: Sequence[str]) -> None:
    """Give `backend` the vocabulary and merges of `texts`: by our own trainer or, without a compiler, the library's."""
    trained = train_merges(texts, json.loads(backend.to_str())["pre_tokenizer"], vocab, FREQUENT, specials)
    if trained is not None:
        backend.model = models.BPE(*trained)
        backend.add_special_tokens(list(specials))
        return
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=FREQUENT,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)


def put_around(backend: tokenizers.Tokenizer, first: Added | None, last: Added | None) -> None:
    """Let a text begin (and end) as the documents of training do."""
    ends = [role.content for role in (first, last) if role is not None]
    if ends:
        single = [*([f"{first.content}:0"] if first else []), "$A:0", *([f"{last.content}:0"] if last else [])]
        known = [(content, backend.token_to_id(content)) for content in ends]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)


def roles_of(specials: Sequence[str]) -> dict[str, Added]:
    """Roles read off the names of special tokens: what is left of the name without brackets, bars and underscores."""
    bare = {content: "".join(c for c in content.lower() if c.isalnum() or c == "/") for content in specials}
    return {
        role: Added(content=content)
        for role, names in _ROLE_NAMES.items()
        for content in [next((content for content in specials if bare[content] in names), None)]
        if content is not None
    }


class _Counted:
    """An iterator over texts that counts their characters and names the one that is not text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.characters = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        text = checked_text(next(self._texts))
        self.characters += len(text)
        return text

    def check(self) -> None:
        """TokenizerError when there was no text."""
        if self.characters == 0:
            raise TokenizerError(pieces.NO_TEXT)
