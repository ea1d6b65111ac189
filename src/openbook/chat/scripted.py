"""A test double for everything that speaks: it says what it was told to say, and remembers what it was asked.

    script = Scripted("Hello.", ["str", "eamed"], TimeoutError(), lambda call: call.messages[-1].content.upper())

Replies are used in order, by `chat` and `complete` alike. A string is an answer; a list is an answer in these pieces
(strings, deltas, or an exception at the place where it stands); an exception is raised; a function is given the call
and returns one of these.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from openbook.chat.messages import Delta, Message, Scored, Terms, Tool, ToolUse, Usage
from openbook.chat.protocols import DEFAULT, FREELY, NOTHING, PLAIN
from openbook.errors import InputError
from openbook.generate.sampling import Sampling


@dataclass
class Call:
    """One thing that was asked. `ended` is "done", "closed" (the listener left) or "failed"; None while it runs."""

    kind: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = DEFAULT
    tools: tuple[Tool, ...] = ()
    use: ToolUse = FREELY
    trim: bool = False
    terms: Terms = PLAIN
    variables: Mapping[str, Any] = field(default_factory=dict)
    ended: str | None = None


Piece: TypeAlias = str | Delta | Exception
Reply: TypeAlias = str | Exception | Sequence[Piece] | Callable[[Call], "str | Exception | Sequence[Piece]"]


class Scripted:
    """Chat, Complete, Embed, Score and Tokenize without a model. `calls` lists what was asked.

    Tokens are UTF-8 bytes. Sampling is recorded, not obeyed. `embed` counts words into `dim` places, so that texts that
    share words are near each other; `score` is a function of context and continuation, by default minus its bytes.
    `pace`: seconds before each piece. `forever`: after the last reply comes the first again.
    """

    def __init__(
        self,
        *replies: Reply,
        dim: int = 64,
        score: Callable[[str, str], float] = lambda _, said: -len(said.encode()),
        pace: float = 0.0,
        forever: bool = False,
    ) -> None:
        self.replies = list(replies)
        self.pace = pace
        self.forever = forever
        self.calls: list[Call] = []
        self._dim = dim
        self._score = score
        self._used = 0

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
        """The next reply."""
        heard = tuple(map(Message.of, messages))
        call = Call(
            "chat", messages=heard, sampling=sampling, tools=tuple(tools), use=use, trim=trim, terms=terms,
            variables=variables,
        )  # fmt: skip
        return self._say(call, sum(len((message.content or "").encode()) for message in heard))

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling = DEFAULT, *, terms: Terms = PLAIN
    ) -> AsyncIterator[Delta]:
        """The next reply."""
        text = prompt if isinstance(prompt, str) else _text(prompt)
        return self._say(Call("complete", prompt=text, sampling=sampling, terms=terms), len(text.encode()))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Counts of words, each in the place that its hash says, of length 1."""
        self.calls.append(Call("embed", prompt="\n".join(texts), ended="done"))
        vectors: list[list[float]] = []
        for text in texts:
            counts = [0.0] * self._dim
            for word in text.lower().split() or [""]:
                counts[int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % self._dim] += 1.0
            length = math.sqrt(sum(count * count for count in counts))
            vectors.append([count / length for count in counts])
        return vectors

    async def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """What the function says; no continuation is the greedy one."""
        self.calls.extend(Call("score", prompt=context + said, ended="done") for context, said in pairs)
        return [
            Scored(logprob=self._score(context, said), tokens=len(said.encode()), greedy=False)
            for context, said in pairs
        ]

    async def tokenize(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode())

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of bytes."""
        return _text(ids)

    async def _say(self, call: Call, heard: int) -> AsyncIterator[Delta]:
        self.calls.append(call)
        try:
            pieces = self._next(call)
            said = 0
            for place, piece in enumerate(pieces):
                if self.pace:
                    await asyncio.sleep(self.pace)
                if isinstance(piece, Exception):
                    raise piece
                delta = Delta(text=piece) if isinstance(piece, str) else piece
                said += len(delta.text.encode())
                if place == len(pieces) - 1:
                    usage = delta.usage or Usage(prompt_tokens=heard, completion_tokens=said)
                    delta = replace(delta, finish=delta.finish or "stop", usage=usage)
                yield delta
            call.ended = "done"
        except Exception:
            call.ended = "failed"
            raise
        finally:
            call.ended = call.ended or "closed"

    def _next(self, call: Call) -> Sequence[Piece]:
        if self.forever and self.replies:
            self._used %= len(self.replies)
        if self._used == len(self.replies):
            raise InputError(f"The script is over: it has {self._used} replies and was asked for one more.")
        self._used += 1
        reply = self.replies[self._used - 1]
        said = reply(call) if callable(reply) else reply
        return [said] if isinstance(said, str | Exception) else list(said) or [""]


def _text(ids: Sequence[int]) -> str:
    if wrong := next((one for one in ids if not 0 <= one < 256), None):
        raise InputError(f"`prompt` has an id that is no byte, as tokens are here: {wrong}. Use 0 to 255.")
    return bytes(ids).decode(errors="replace")
