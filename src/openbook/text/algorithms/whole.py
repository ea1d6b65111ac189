"""A tokenizer that is there, taken apart: the words its pipeline finds in a text, and the algorithm that cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import models

from openbook.errors import TokenizerError
from openbook.text.algorithms.bpe import Bpe
from openbook.text.algorithms.unigram import Unigram
from openbook.text.algorithms.wordpiece import WordPiece

Algorithm = Bpe | WordPiece | Unigram
ALGORITHMS: Mapping[str, Callable[[Mapping[str, Any]], Algorithm]] = {
    "BPE": Bpe.of,
    "WordPiece": WordPiece.of,
    "Unigram": Unigram.of,
}
NOTHING = "\0\0nothing\0\0"


class Whole:
    """The words and the algorithm of `backend`, whose special tokens must be out of the way (see sealed.py)."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        model = json.loads(backend.to_str())["model"]
        if model["type"] not in ALGORITHMS:
            raise TokenizerError(
                f"There is no other way to cut a text with a {model['type']} vocabulary. "
                f"Use a tokenizer of one of these: {', '.join(ALGORITHMS)}."
            )
        self.algorithm: Algorithm = ALGORITHMS[model["type"]](model)
        self._added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        # The same pipeline before a model that knows nothing: each word comes back whole, as one unknown run.
        self._split = tokenizers.Tokenizer.from_str(backend.to_str())
        self._split.model = models.Unigram([(NOTHING, 0.0)], unk_id=0)

    def words(self, text: str) -> list[str | int]:
        """What `text` is split into: words to be cut, and the ids of tokens that were added beside the vocabulary."""
        found = self._split.encode(text, add_special_tokens=False)
        return [self._added[token] if number else token for token, number in zip(found.tokens, found.ids, strict=True)]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ids: list[int] = []
        for word in self.words(text):
            ids += [word] if isinstance(word, int) else self.algorithm.encode(word)
        return ids
