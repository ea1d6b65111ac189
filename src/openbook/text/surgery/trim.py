"""Keeping only the part of a vocabulary that a corpus needs: the text of the corpus is cut as before.

Kept are special and added tokens, single bytes, the single characters of the corpus, what the corpus was cut into, and
what the algorithm went through on its way there: every merge that joined anything in the corpus, with both its parts;
the tokens that WordPiece matched before it gave a word up. What is left out was then never the best choice at any step,
and without it the same choices are made. Other text can be cut in another way, into shorter tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from openbook.errors import TokenizerError
from openbook.text.algorithms.bpe import Bpe, Pair
from openbook.text.algorithms.unigram import Unigram
from openbook.text.algorithms.whole import Whole
from openbook.text.algorithms.wordpiece import WordPiece
from openbook.text.stream import Kind
from openbook.text.surgery.change import Change
from openbook.text.tokenizer import Tokenizer


def trim(tokenizer: Tokenizer, texts: Iterable[str], *, keep: Sequence[str] = ()) -> Change:
    """The part of `tokenizer` that `texts` need; `keep` are further tokens, as the vocabulary spells them.

    TokenizerError: a token of `keep` that is not there, or a vocabulary of another kind than BPE, WordPiece, Unigram.
    """
    whole = tokenizer.whole
    words: set[str] = set()
    for text in texts:
        words.update(word for word in whole.words(text) if isinstance(word, str))
    ids, merges = _needed(whole, sorted(words))
    ids |= _always(tokenizer)
    for spelling in keep:
        number = tokenizer.token_id(spelling)
        if number is None:
            raise TokenizerError(f"{spelling!r} is not a token of this vocabulary: it cannot be kept.")
        ids |= _parts(whole, number, merges)
    state = tokenizer.state()
    # In the order of their ids, and what is added beside the vocabulary behind it, as it must be.
    inside = set(_vocabulary(state["model"]).values())
    kept = sorted(ids, key=lambda number: (number not in inside, number))
    new = {old: number for number, old in enumerate(kept)}
    names = {number: spelling for spelling, number in _vocabulary(state["model"]).items()}
    _renumber(state, new, {(names[left], names[right]) for left, right in merges})
    made = tokenizer.with_state(state, new)
    lost = [old for old in kept if made.token(new[old]) != tokenizer.token(old)]
    if lost or made.vocab != len(kept):
        raise TokenizerError(
            f"This vocabulary cannot be trimmed: the ids of its added tokens do not fit it ({lost[:4]})."
        )
    return Change(made, tuple((old,) for old in kept), tokenizer.vocab)


def _needed(whole: Whole, words: Sequence[str]) -> tuple[set[int], set[Pair]]:
    """The ids that the words are cut into or go through, and the merges among them."""
    ids: set[int] = set()
    merges: set[Pair] = set()

    def note(pair: Pair) -> bool:
        merges.add(pair)
        return False

    for word in words:
        match whole.algorithm:
            case Bpe() as bpe:
                ids.update(bpe.encode(word))
                if not (bpe.whole and word in bpe.ids):
                    ids.update(bpe.symbols(word), bpe.merged(word, note))
            case WordPiece() as wordpiece:
                ids.update(wordpiece.matched(word)[0])
                marks = (wordpiece.mark * (at > 0) + character for at, character in enumerate(word))
                ids.update(wordpiece.ids[spelling] for spelling in marks if spelling in wordpiece.ids)
            case Unigram() as unigram:
                ids.update(unigram.encode(word))
                ids.update(unigram.ids[character] for character in word if character in unigram.ids)
    if isinstance(whole.algorithm, Unigram):  # an unknown character is measured against the worst token
        scores = {token: score for token, score in whole.algorithm.tokens if score == score}
        ids.add(whole.algorithm.ids[min(scores, key=scores.__getitem__)])
    if isinstance(whole.algorithm, Bpe):
        for pair in merges:
            ids.update((*pair, whole.algorithm.merges[pair][1]))
    return ids, merges


def _always(tokenizer: Tokenizer) -> set[int]:
    """Special and added tokens, what stands around a text, the unknown token, and single bytes."""
    state = tokenizer.state()
    model = state["model"]
    ids = {token["id"] for token in state["added_tokens"]} | _around(state.get("post_processor") or {})
    decoding = tokenizer.decoding
    for spelling, number in _vocabulary(model).items():
        byte = decoding.kind is Kind.BYTES and len(spelling) == 1
        if byte or decoding.is_byte(spelling) or spelling == model.get("unk_token"):
            ids.add(number)
    return ids | {number for number in (tokenizer.unk, model.get("unk_id")) if number is not None}


def _around(processor: dict[str, Any]) -> set[int]:
    """The ids that a post-processor writes."""
    ids = {number for part in processor.get("processors", ()) for number in _around(part)}
    ids |= {number for entry in (processor.get("special_tokens") or {}).values() for number in entry["ids"]}
    return ids | {processor[name][1] for name in ("sep", "cls") if isinstance(processor.get(name), list)}


def _parts(whole: Whole, number: int, merges: set[Pair]) -> set[int]:
    """A token with all that it is made of; the merges that make it join `merges`."""
    if not isinstance(whole.algorithm, Bpe):
        return {number}
    made = {token: pair for pair, (_, token) in list(whole.algorithm.merges.items())[::-1]}
    ids: set[int] = set()
    left = [number]
    while left:
        one = left.pop()
        ids.add(one)
        if one in made:
            merges.add(made[one])
            left += made[one]
    return ids


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Spelling → id."""
    vocab = model["vocab"]
    return vocab if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}


def _renumber(state: dict[str, Any], new: dict[int, int], merges: set[tuple[str, str]]) -> None:
    """Rewrite the content of a tokenizer.json to the ids that are kept."""
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    else:
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
    if model.get("unk_id") is not None:
        model["unk_id"] = new[model["unk_id"]]
    if "merges" in model:
        split = (tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"])
        model["merges"] = [list(merge) for merge in split if merge in merges]
    for token in state["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_processor(state.get("post_processor") or {}, new)


def _renumber_processor(processor: dict[str, Any], new: dict[int, int]) -> None:
    for part in processor.get("processors", ()):
        _renumber_processor(part, new)
    for entry in (processor.get("special_tokens") or {}).values():
        entry["ids"] = [new[number] for number in entry["ids"]]
    for name in ("sep", "cls"):  # [spelling, id]
        if isinstance(processor.get(name), list):
            processor[name][1] = new[processor[name][1]]
