"""An adapter of an engine as an endpoint of its own: the same model, every request through the adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from openbook.chat.local import Local
from openbook.chat.messages import Terms
from openbook.generate.requests import Logprob, Token
from openbook.generate.sampling import Sampling

if TYPE_CHECKING:
    from openbook.chat.engine import Engine


class Adapted(Local):
    """Chat, Complete, Score and Tokenize over `engine` with the adapter `name`, which may come and go."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine.model, engine.tokenizer, context=engine.context)
        self.engine = engine
        self.name = name

    def _tokens(self, ids: list[int], sampling: Sampling, terms: Terms) -> AsyncGenerator[Token]:
        self.engine.check_adapter(self.name)
        return self.engine._tokens(ids, sampling, terms, self.name)

    async def _heard(self, texts: list[list[int]], asked: Sampling) -> list[Sequence[Logprob | None]]:
        outputs = await asyncio.to_thread(self.engine.generate, texts, asked, adapter=self.name)
        return [output.prompt_logprobs or () for output in outputs]

    async def _listened(self, ids: list[int], asked: Sampling, terms: Terms) -> Sequence[Logprob | None]:
        return await self.engine._listened(ids, asked, terms, self.name)
