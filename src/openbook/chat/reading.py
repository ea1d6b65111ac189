"""What an engine reads rather than writes: vectors, classes, scores of pairs, words for masks.

Each runs in the engine's thread between two steps, its texts sorted by length and read together (`generate/encode.py`).
A text too long for the model is an error with numbers, never cut.
"""

from __future__ import annotations

from asyncio import wrap_future
from collections.abc import Sequence
from functools import partial

from openbook.errors import InputError
from openbook.generate import encode, masked
from openbook.generate.encode import Pooling
from openbook.generate.live import Live
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer

Pair = tuple[str, str]


class Reads:
    """Embed, and what else encoders are asked; over `live`, `model` and `tokenizer` of the class that has it."""

    live: Live
    model: LanguageModel
    tokenizer: Tokenizer

    async def embed(
        self, texts: Sequence[str], *, pooling: Pooling | None = None, exact: bool = False
    ) -> list[list[float]]:
        """A vector for each text: as the model's own sentence head does (that of a sentence encoder's folder), or as
        `pooling` says; without either the normalised mean of its hidden states.

        `exact`: each text is read alone, so that its vector is the same to the last bit whatever comes with it.
        """
        ids = [self._whole(text) for text in texts]
        work = partial(encode.embed, self.model, ids, pooling, exact=exact)
        return (await wrap_future(self.live.call(work))).tolist()

    async def classify(self, texts: Sequence[str | Pair], *, head: str | None = None) -> list[list[float]]:
        """Logits of a class head over labels, for each text or pair of texts."""
        ids, types = self._pairs(texts)
        found = await wrap_future(self.live.call(partial(encode.classify, self.model, ids, types=types, head=head)))
        return [one.tolist() for one in found]

    async def rank(self, query: str, documents: Sequence[str], *, sigmoid: bool = False) -> list[float]:
        """How well each document answers the query, by a cross-encoder (a class head with one label)."""
        ids, types = self._pairs([(query, document) for document in documents])
        work = partial(encode.score, self.model, ids, types=types, sigmoid=sigmoid)
        return await wrap_future(self.live.call(work))

    async def fill(self, texts: Sequence[str], *, top: int = 5) -> list[list[list[tuple[str, float]]]]:
        """What could stand at each mask of each text, with probabilities, best first."""
        mask = self.tokenizer.mask
        if mask is None:
            raise InputError("This tokenizer has no mask token: there is nothing to fill.")
        name = str(self.tokenizer.token(mask))
        ids = [self.tokenizer.prompt(text, allow_specials=[name]) for text in texts]
        specials = list(self.tokenizer.specials.values())
        work = partial(masked.fill, self.model, ids, mask, top=top, banned=specials)
        found = await wrap_future(self.live.call(work))
        return [[[(self.tokenizer.decode([i]), p) for i, p in blank.top] for blank in blanks] for blanks in found]

    def _whole(self, text: str) -> list[int]:
        return [*self.tokenizer.prefix, *self.tokenizer.encode(text), *self.tokenizer.suffix]

    def _pairs(self, texts: Sequence[str | Pair]) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids of texts, a pair as one row; and segment types, where the model has them."""
        ids, types = [], []
        for text in texts:
            first = self._whole(text if isinstance(text, str) else text[0])
            second: list[int] = []
            if not isinstance(text, str):
                second = [*self.tokenizer.encode(text[1]), *self.tokenizer.suffix]
            ids.append(first + second)
            types.append([0] * len(first) + [1] * len(second))
        return ids, types if self.model.spec.embed.types > 1 else None
