"""Other ways to cut the same text, drawn anew each time: a model that trains on them learns what tokens are made of.

BPE with dropout (Provilkov et al. 2020): 0.1 is what they train with; 0 is the usual encoding, 1 leaves single bytes
or characters. Unigram with alpha (Kudo 2018, §3.3, each word by itself): a way is drawn with its probability to the
power of alpha; 0.1 to 0.5 is usual, 0 makes all ways equal, a large one gives the best way.
"""

from __future__ import annotations

import random

from openbook.errors import InputError, TokenizerError
from openbook.text.algorithms.bpe import Bpe
from openbook.text.algorithms.unigram import Unigram
from openbook.text.algorithms.whole import Whole


def check_rates(dropout: float | None, alpha: float | None) -> None:
    """InputError unless exactly one is given, and it is a rate of its kind."""
    if (dropout is None) == (alpha is None):
        raise InputError("Give `dropout` (for BPE) or `alpha` (for Unigram), one of the two.")
    if dropout is not None and not 0 <= dropout <= 1:
        raise InputError(f"`dropout` is a probability from 0 to 1: got {dropout}.")
    if alpha is not None and not 0 <= alpha < float("inf"):
        raise InputError(f"`alpha` is a power of 0 or more: got {alpha}.")


def check_kind(whole: Whole, dropout: float | None) -> None:
    """TokenizerError where the vocabulary is not of the kind that the rate is for."""
    kind = type(whole.algorithm).__name__
    if dropout is not None and not isinstance(whole.algorithm, Bpe):
        raise TokenizerError(
            f"`dropout` is for BPE: this vocabulary is a {kind}. Give `alpha`, where it is a Unigram vocabulary."
        )
    if dropout is None and not isinstance(whole.algorithm, Unigram):
        raise TokenizerError(
            f"`alpha` is for Unigram: this vocabulary is a {kind}. Give `dropout`, where it is a BPE vocabulary."
        )


def sample(whole: Whole, text: str, dropout: float | None, alpha: float | None, seed: int) -> list[int]:
    """Ids of `text`, cut in a way that is drawn from `seed`."""
    check_rates(dropout, alpha)
    check_kind(whole, dropout)
    draw = random.Random(seed).random
    ids: list[int] = []
    for word in whole.words(text):
        match whole.algorithm:
            case _ if isinstance(word, int):
                ids.append(word)
            case Bpe() as bpe if dropout:
                ids += bpe.merged(word, lambda _: draw() < dropout)
            case Unigram() as unigram if alpha is not None:
                ids += unigram.numbers(word, unigram.sampled(word, alpha, draw))
            case algorithm:
                ids += algorithm.encode(word)
    return ids
