"""Prompts as text → continuations as text: what `ob.generate` and `openbook generate` share.

Special tokens write nothing; a stop string and what follows it are cut off; an encoder-decoder's output stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openbook.chat.local import start_of
from openbook.errors import InputError
from openbook.generate.loop import stream_ids
from openbook.generate.requests import Generation, Token
from openbook.generate.sampling import Sampling
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer


@dataclass
class Prompts:
    """Prompts on their way through a model, and what becomes of them as text."""

    model: LanguageModel
    tokenizer: Tokenizer
    prompts: list[str]
    sampling: Sampling
    cached: bool = True

    def __post_init__(self) -> None:
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            raise InputError("Prompts are texts: give a list of strings.")
        self.tokenizer.check_fits(self.model.spec.embed.vocab)
        self._specials = frozenset(self.tokenizer.specials.values())

    @property
    def two_sided(self) -> bool:
        """Whether the prompt is read by an encoder, so that the output does not continue it."""
        return self.model.spec.source is not None

    def tokens(self, results: list[Generation]) -> Iterator[Token]:
        """The output, token by token; `results` is filled at the end."""
        return stream_ids(
            self.model,
            [self.tokenizer.prompt(text) or self._nothing() for text in self.prompts],
            self.sampling,
            eos=self.tokenizer.stops,
            start=start_of(self.model, self.tokenizer),
            cached=self.cached,
            token_bytes=self._bytes,
            results=results,
        )

    def finished(self) -> Iterator[tuple[str, Generation, str]]:
        """(prompt, generation, its text) for every continuation, in the order of the prompts."""
        results: list[Generation] = []
        for _ in self.tokens(results):
            pass
        for result in results:
            yield self.prompts[result.prompt], result, self._text(result)

    def _bytes(self, number: int) -> bytes:
        return b"" if number in self._specials else self.tokenizer.token_bytes(number)

    def _nothing(self) -> list[int]:
        """What stands for an empty prompt: the begin id, if there is one."""
        return [] if self.tokenizer.bos is None else [self.tokenizer.bos]

    def _text(self, result: Generation) -> str:
        said = b"".join(map(self._bytes, result.ids))
        text = said[: len(said) - result.excess].decode("utf-8", errors="replace")
        return text.lstrip() if self.two_sided else text
