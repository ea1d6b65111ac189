"""The five things that can be asked. Whatever has the method has the capability; what lacks it refuses clearly.

A local model, an endpoint at the other end of a wire and a scripted test double are the same to an application, which
says what it needs: `require(endpoint, Chat)`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

from openbook.chat.messages import Delta, Message, Scored, Terms, Tool, ToolUse
from openbook.errors import Refusal
from openbook.generate.sampling import Sampling

DEFAULT = Sampling()
FREELY = ToolUse()
PLAIN = Terms()
NOTHING: Mapping[str, Any] = MappingProxyType({})


@runtime_checkable
class Chat(Protocol):
    """Answers the next turn of a conversation."""

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: Sampling = DEFAULT,
        *,
        tools: Sequence[Tool] = (),
        use: ToolUse = FREELY,
        trim: bool = False,
        terms: Terms = PLAIN,
        variables: Mapping[str, Any] = NOTHING,
    ) -> AsyncIterator[Delta]:
        """The answer, as it comes. Closing the iterator stops the work.

        A conversation that is too long for the context is `TooLong`; with `trim` its oldest turns are left out
        instead, and the first delta says which (`dropped`). `variables` are for the chat template
        (`enable_thinking`, say). A parameter that cannot be honoured is a Refusal.
        """
        ...


@runtime_checkable
class Complete(Protocol):
    """Continues a text."""

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling = DEFAULT, *, terms: Terms = PLAIN
    ) -> AsyncIterator[Delta]:
        """What follows `prompt` (a text or ids), as it comes, without it. Closing the iterator stops the work.

        Where `sampling.prompt_logprobs` asks for them, the first delta has the tokens of the prompt (`heard`).
        """
        ...


@runtime_checkable
class Embed(Protocol):
    """Turns texts into vectors whose angle says how related they are."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector of length 1 per text; a text too long for the model is `TooLong`."""
        ...


@runtime_checkable
class Score(Protocol):
    """Says how likely a given continuation is."""

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """For each (context, continuation) how likely the continuation is after the context."""
        ...


@runtime_checkable
class Tokenize(Protocol):
    """Shows the ids behind texts: the way to count them."""

    async def tokenize(self, text: str) -> list[int]:
        """Ids of `text`; names of special tokens in it are text."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


PROTOCOLS: tuple[type, ...] = (Chat, Complete, Embed, Score, Tokenize)

P = TypeVar("P")


def capabilities(endpoint: object) -> tuple[str, ...]:
    """The names of the protocols that `endpoint` has."""
    return tuple(protocol.__name__ for protocol in PROTOCOLS if isinstance(endpoint, protocol))


def require(endpoint: object, protocol: type[P]) -> P:
    """`endpoint`, known to have `protocol`; a Refusal that says what it can do where it has not."""
    if isinstance(endpoint, protocol):
        return endpoint
    can = ", ".join(capabilities(endpoint)) or "nothing of what can be asked"
    raise Refusal(f"{type(endpoint).__name__} cannot {protocol.__name__}. It can: {can}.")
