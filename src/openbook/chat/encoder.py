"""A model that reads, behind the waist: texts → ids → vectors. Embed and Tokenize over a model in this process.

Encoders (BERT and its like), the encoder of an encoder-decoder, and causal models, whose last or mean state serves. A
text too long for the model is an error with numbers, never cut: split it first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from openbook.errors import InputError
from openbook.generate.encode import Pooling, embed
from openbook.nn.model import LanguageModel
from openbook.text import Tokenizer

MEAN = Pooling()


class Encoder:
    """Embed and Tokenize. `pooling` must normalise: the vectors of `Embed` have length 1."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, pooling: Pooling = MEAN, *, exact: bool = False
    ) -> None:
        if not pooling.normalise:
            raise InputError("The vectors of `Embed` have length 1: leave `normalise` true, or call `encode.embed`.")
        tokenizer.check_fits(model.spec.embed.vocab)
        self.model, self.tokenizer, self.pooling, self.exact = model, tokenizer, pooling, exact
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="openbook-encoder")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of length 1 per text, with what the tokenizer puts around a text."""
        around = self.tokenizer
        ids = [[*around.prefix, *found, *around.suffix] for found in around.encode_batch(texts)]
        work = partial(embed, self.model, ids, self.pooling, exact=self.exact)
        vectors = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        return vectors.tolist()

    async def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, nothing around them."""
        return self.tokenizer.encode(text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(ids)
