"""A tokenizer that is there, taken apart: the words its pipeline finds in a text, and the algorithm that cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers

from openbook.errors import TokenizerError
from openbook.text.algorithms.bpe import Bpe
from openbook.text.algorithms.unigram import Unigram
from openbook.text.algorithms.wordpiece import WordPiece
from openbook.text.backend import encoded

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
        # The same pipeline before a model that knows nothing: each word comes back whole, as one unknown run with the
        # id 0. Added tokens get the ids behind it: what they are spelled like in a text is not always their name.
        split = json.loads(backend.to_str())
        split["model"] = {"type": "Unigram", "vocab": [[NOTHING, 0.0]], "unk_id": 0}
        self._added = [0] + [int(token["id"]) for token in split["added_tokens"]]
        for number, token in enumerate(split["added_tokens"], 1):
            token["id"] = number
        self._split = tokenizers.Tokenizer.from_str(json.dumps(split))

    def words(self, text: str) -> list[str | int]:
        """What `text` is split into: words to be cut, and the ids of tokens that were added beside the vocabulary."""
        found = encoded(lambda: self._split.encode(text, add_special_tokens=False))
        return [self._added[number] if number else token for token, number in zip(found.tokens, found.ids, strict=True)]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ids: list[int] = []
        for word in self.words(text):
            ids += [word] if isinstance(word, int) else self.algorithm.encode(word)
        return ids
