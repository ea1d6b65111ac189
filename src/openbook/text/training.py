"""Training byte-level byte-pair encoding (Sennrich et al. 2016; bytes: Radford et al. 2019).

Text is split into words, a word into its bytes, and the most frequent pair of neighbours becomes a new token until the
vocabulary is full. With all 256 bytes in it every string can be encoded and decodes to itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from openbook.errors import TokenizerError
from openbook.text.engine import train_merges
from openbook.text.folder import Added
from openbook.text.sealed import checked_text

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

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

FREQUENT = 2  # how often a pair must come to become a token

_ROLE_NAMES = {
    "bos": ("bos", "s", "startoftext", "beginoftext"),
    "eos": ("eos", "/s", "endoftext"),
    "pad": ("pad",),
    "unk": ("unk",),
    "mask": ("mask",),
}


def train_bpe(texts: Iterable[str], vocab: int, specials: Sequence[str], closed: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE with at most `vocab` ids, `specials` first, and the bos token, if any, before a prompt.

    With `closed`, the eos token stands after it.

    TokenizerError: too small a vocabulary, no text.
    """
    smallest = 256 + len(specials)
    if any(len(special) < 2 for special in specials) or len(set(specials)) != len(specials):
        raise TokenizerError(
            f"`specials` must be different strings of two or more characters: got {list(specials)!r}. "
            "A single character is needed to write text with."
        )
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
    if counted.characters == 0:
        raise TokenizerError("There is no text to train a tokenizer on: every document was empty. Give some text.")
    roles = roles_of(specials)
    bos, eos = roles.get("bos"), roles.get("eos") if closed else None
    ends = [role.content for role in (bos, eos) if role is not None]
    if ends:  # a text begins (and ends) as the documents of training do
        single = [*([f"{bos.content}:0"] if bos else []), "$A:0", *([f"{eos.content}:0"] if eos else [])]
        pairs = [(content, backend.token_to_id(content)) for content in ends]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
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
