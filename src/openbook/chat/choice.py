"""One choice on its way from tokens to deltas: characters are whole, marks are read, text ends before a stop string."""

from __future__ import annotations

from collections.abc import Callable, Collection

from openbook.chat.hearing import Hearing
from openbook.chat.messages import Delta, Finish, Logprob
from openbook.generate.requests import Logprob as TokenLogprob
from openbook.generate.requests import Token
from openbook.generate.sampling import Sampling
from openbook.generate.stops import Watch
from openbook.text import TextStream, Tokenizer


class Choice:
    """Choice number `index` of an answer.

    hearing   tells its text, reasoning and calls apart
    shown     ids of special tokens that are parts of marks; all others write nothing
    once      it is over when one call is
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        sampling: Sampling,
        hearing: Hearing,
        *,
        shown: Collection[int] = (),
        once: bool = False,
    ) -> None:
        self.index = index
        self.finish: Finish | None = None
        self.reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, skip_specials=False)
        self._silent = frozenset(tokenizer.specials.values()) - frozenset(shown)
        self._hearing = hearing
        self._once = once
        self._watch = Watch(sampling.stop_bytes)
        self._min_tokens = sampling.min_tokens
        self._ends = {*sampling.stop_ids, *(() if sampling.ignore_eos else tokenizer.stops)}

    def take(self, token: Token) -> Delta:
        """What `token` adds. An id that stops is not a part of the text; the last one of a grammar is."""
        hearing, thinking = self._hearing, self._hearing.thinking
        stopped = token.finish == "stop"
        silent = token.id in self._silent or (stopped and token.id in self._ends)
        heard = [hearing.feed("" if silent else self._stream.feed(token.id))]
        over = self._once and hearing.completed > 0
        if token.finish is not None or over:
            heard += [hearing.feed(self._stream.finish()), hearing.finish()]
            self.finish = "length" if not (stopped or over) else "tool_calls" if hearing.begun else "stop"
        reasoning = "".join(one.reasoning for one in heard)
        self.reasoning_tokens += bool(thinking or hearing.thinking or reasoning)
        text, calls = "".join(one.text for one in heard), tuple(part for one in heard for part in one.calls)
        shown = self._watch.feed(text.encode(), stopping=token.index + 1 >= self._min_tokens)
        if self._watch.found is not None:
            self.finish = "tool_calls" if hearing.begun else "stop"
        elif self.finish:
            shown += self._watch.finish()
        return Delta(
            choice=self.index,
            text=shown.decode(errors="replace"),
            reasoning=reasoning,
            tool_calls=calls,
            finish=self.finish,
            logprobs=() if token.logprob is None else (logprob_of(self._tokenizer, token.logprob, silent),),
        )


def logprob_of(tokenizer: Tokenizer, found: TokenLogprob, silent: bool) -> Logprob:
    """A token's log-probability, and that of its alternatives, as text."""

    def one(number: int, logprob: float, top: tuple[Logprob, ...] = (), silent: bool = False) -> Logprob:
        raw = tokenizer.token_bytes(number)
        return Logprob(token=raw.decode(errors="replace"), bytes=raw, logprob=logprob, top=top, silent=silent)

    return one(found.id, found.logprob, tuple(one(number, logprob) for number, logprob in found.top), silent)


def bytes_of(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """The bytes of an id; special ids write nothing."""
    specials = frozenset(tokenizer.specials.values())
    return lambda number: b"" if number in specials else tokenizer.token_bytes(number)
