"""What an engine reads rather than writes: vectors, classes, scores of pairs, words for masks.

Texts are sorted by length and read together (`generate/encode.py`), in the engine's thread, a pass between two
steps. A text too long for the model is an error with numbers, never cut.
"""

from __future__ import annotations

from asyncio import to_thread, wrap_future
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeVar

from openbook.chat.rows import Row, Text, row_of
from openbook.errors import InputError
from openbook.generate import encode, masked
from openbook.generate.encode import Pooling
from openbook.generate.live import Live
from openbook.nn.heads import ClassHead
from openbook.nn.model import LanguageModel
from openbook.text.engine import LONG
from openbook.text.tokenizer import Tokenizer

T = TypeVar("T")
Activation = Literal["sigmoid", "softmax", "none"]


class Reads:
    """Embed, and what else encoders are asked; over `live`, `model` and `tokenizer` of the class that has it."""

    live: Live
    model: LanguageModel
    tokenizer: Tokenizer

    def rows(self, texts: Sequence[Text]) -> list[Row]:
        """Texts as they are read: what is handed to the methods below instead of a text is not tokenised again."""
        return [row_of(self.tokenizer, text) for text in texts]

    @property
    def writes(self) -> bool:
        """Whether the model writes as well: an encoder only reads."""
        return self.model.spec.language is not None and self.model.spec.causal

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that `classify` has a number for: `id2label` of the folder; none without a head for texts."""
        head = next((head for head in self.model.heads.values() if isinstance(head, ClassHead)), None)
        if head is None or head.spec.over == "tokens":
            return ()
        named = self.model.config.get("id2label") or {}
        return tuple(str(named.get(str(place), f"LABEL_{place}")) for place in range(head.spec.count))

    @property
    def activation(self) -> Activation:
        """What makes chances of the logits of `classify`: classes that exclude each other are a softmax, several that
        may hold at once (`problem_type`) and a single one are sigmoids; "none" where a cross-encoder's folder says so.
        """
        config = self.model.config
        about = config.get("sentence_transformers") or {}
        said = about.get("activation_fn") or config.get("sbert_ce_default_activation_function") or ""
        if str(said).endswith("Identity"):
            return "none"
        several = len(self.labels) == 1 or config.get("problem_type") == "multi_label_classification"
        return "sigmoid" if several else "softmax"

    async def embed(
        self, texts: Sequence[Text], *, pooling: Pooling | None = None, exact: bool = False
    ) -> list[list[float]]:
        """A vector for each text: as the model's own sentence head does (that of a sentence encoder's folder), or as
        `pooling` says; without either the normalised mean of its hidden states.

        `exact`: each text is read alone, so that its vector is the same to the last bit whatever comes with it.
        """
        work = partial(encode.embed, pooling=pooling, exact=exact)
        found = await self._passes(texts, work, most=encode.longest(self.model, pooling), exact=exact)
        return [vector.tolist() for vector in found]

    async def classify(self, texts: Sequence[Text], *, head: str | None = None) -> list[list[float]]:
        """Logits of a class head over labels, for each text or pair of texts."""
        return [logits.tolist() for logits in await self._passes(texts, partial(encode.classify, head=head))]

    async def rank(self, query: str, documents: Sequence[str], *, sigmoid: bool = False) -> list[float]:
        """How well each document answers the query, by a cross-encoder (a class head with one label)."""
        pairs = [(query, document) for document in documents]
        return await self._passes(pairs, partial(encode.score, sigmoid=sigmoid))

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

    async def _passes(
        self, texts: Sequence[Text], work: Callable[..., Iterable[T]], *, most: int | None = None, exact: bool = False
    ) -> list[T]:
        """What `work` makes of each text. Between two passes the engine takes its steps, so that nobody's answer waits
        for all of them; whoever has gone meanwhile is not read for any more."""

        def ready() -> tuple[list[Row], list[list[int]]]:
            rows = self.rows(texts)
            encode.check(self.model, [row.ids for row in rows], most)
            return rows, encode.by_length([len(row) for row in rows], exact=exact)

        rows, passes = await to_thread(ready) if sum(map(len, texts)) > LONG else ready()
        typed = self.model.spec.embed.types > 1
        found: dict[int, T] = {}
        for places in passes:
            part = [rows[place] for place in places]
            types = [row.types for row in part] if typed else None
            done = await wrap_future(self.live.call(partial(work, self.model, [row.ids for row in part], types=types)))
            found.update(zip(places, done, strict=True))
        return [found[place] for place in range(len(rows))]
