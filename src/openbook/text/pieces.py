"""Training the two other kinds of tokenizer: WordPiece for encoders in the line of BERT, Unigram as sentencepiece has.

Both give the same tokenizer for the same texts. The trainers of the `tokenizers` library alone do not: they number what
they meet in the order of a hash table, and add up in the order in which threads finish.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from openbook.errors import TokenizerError
from openbook.text.algorithms import wordpiece

NO_TEXT = "There is no text to train a tokenizer on: every document was empty. Give some text."
SPACE = "▁"  # how Unigram vocabularies write a space
SPELLING = "<0x123456789ABCDEF>"  # characters that the name of a byte token is made of
DIGITS = 4  # decimals of a score that are kept; what threads leave to chance is far behind them
LONGEST = 1 << 10  # characters of a word that Unigram learns from; longer ones are data, not language
BATCH = 1 << 12  # times a word is given at once
BYTE_SCORE = -1000.0  # of a byte token: no text that spells its name is read as that byte


def wordpiece_backend(
    texts: Iterable[str], vocab: int, specials: Sequence[str], unknown: str, lowercase: bool
) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer with at most `vocab` ids, text cleaned and split as BERT does it (Devlin et al. 2018).

    A quarter of the ids at most are characters, and a quarter the same characters inside of words; a word with a
    character that is rarer is `unknown`. `lowercase`: lower case without accents.
    """
    room = _room(vocab, len(specials), 4)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _words(backend, texts, wordpiece.LONGEST)
    tokens = wordpiece.train(words, vocab, specials, characters=room // 4)
    ids = {token: number for number, token in enumerate(tokens)}
    backend.model = models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=wordpiece.LONGEST)
    backend.decoder = decoders.WordPiece(prefix=wordpiece.MARK)
    backend.add_special_tokens(list(specials))
    return backend


def unigram_backend(
    texts: Iterable[str], vocab: int, specials: Sequence[str], unknown: str, split: str
) -> tokenizers.Tokenizer:
    """A Unigram tokenizer with at most `vocab` ids: specials, 256 bytes, then pieces by score (Kudo 2018, §3.2).

    Words are found by the pattern `split`. A space is written ▁ and nothing is added before a text, so that every text
    decodes to itself, but for a ▁ that stands in it, which is a space. A character that no piece has is its bytes; half
    of the pieces at most are single characters, the most frequent ones.
    """
    room = _room(vocab, len(specials) + 256, 2 * len(SPELLING))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
    learned = _learned(_words(backend, texts, LONGEST), room)
    entries = [(special, 0.0) for special in specials]
    entries += [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    entries += [piece for piece in learned if piece[0] not in specials]
    backend.model = models.Unigram(entries, unk_id=list(specials).index(unknown), byte_fallback=True)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(list(specials))
    return backend


def _learned(words: Mapping[str, int], room: int) -> list[tuple[str, float]]:
    """At most `room` pieces and their log-probabilities, the most probable first."""
    counts = Counter(dict.fromkeys(SPELLING, 1 << 62))
    for word, times in words.items():
        for character in word:
            counts[character] += times
    often = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = set(often[: room // 2])
    # Each word as often as it occurs, between marks that no word holds.
    mark = next(chr(number) for number in range(0xE000, 0x110000) if chr(number) not in counts)
    usable = [(word + mark, times) for word, times in words.items() if alphabet.issuperset(word)]
    if not usable:
        return [(character, round(-math.log(len(alphabet)), DIGITS)) for character in sorted(alphabet)]
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Split(mark, behavior="removed")
    trainer = trainers.UnigramTrainer(vocab_size=room, initial_alphabet=sorted(alphabet), show_progress=False)
    trained.train_from_iterator(
        ((word * min(times - at, BATCH)) for word, times in usable for at in range(0, times, BATCH)), trainer
    )
    pieces = _settled(json.loads(trained.to_str())["model"]["vocab"])
    return sorted(pieces, key=lambda piece: (-piece[1], piece[0]))


def _words(backend: tokenizers.Tokenizer, texts: Iterable[str], longest: int) -> dict[str, int]:
    """How often each word of at most `longest` characters occurs in the texts, as `backend` cleans and splits them."""
    counter = trainers.BpeTrainer(vocab_size=1, show_progress=False)
    backend.train_from_iterator(texts, counter)
    words: dict[str, int] = json.loads(counter.__getstate__())["BpeTrainer"]["words"]
    if not words:
        raise TokenizerError(NO_TEXT)
    return {word: times for word, times in sorted(words.items()) if len(word) <= longest}


def _settled(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The trainer's pieces without what it leaves to chance.

    Characters so rare that every word with one is better cut otherwise are put back at the end, with the lowest score
    there is and a step more for each, in the order of a hash table: here, in their own order.
    """
    step, near = 1e-4, 1e-6
    height = min(score for _, score in pieces)
    ladder: list[tuple[float, str]] = []
    for score, piece in sorted((score, piece) for piece, score in pieces if len(piece) == 1):
        if min(abs(score - height), abs(score - height - step)) < near:
            ladder.append((score, piece))
            height = score
    put_back = dict(zip(sorted(piece for _, piece in ladder), (score for score, _ in ladder), strict=True))
    return [(piece, round(put_back.get(piece, score), DIGITS)) for piece, score in pieces]


def _room(vocab: int, fixed: int, least: int) -> int:
    """How many ids are free for what is learned."""
    if vocab < fixed + least:
        raise TokenizerError(
            f"`vocab` is too small: got {vocab}, but special tokens and bytes need {fixed}, and single characters "
            f"{least}. Use {fixed + least} or more."
        )
    return vocab - fixed
