"""The loop: prompts → tokens, one step for all rows at a time.

    feed.first / feed.next   logits of every row's last token          feed.py: with a cache, or the slow reference
    sampler.choose           one id per row                            sampler.py
    Line.take               stops, log-probabilities, events          output.py
    Writer._drop             rows that are done leave the batch

Rows stop one by one; the rest goes on without them. What a request gets depends on nothing beside it (law 3): not on
batch mates, and its randomness only on its own seed. Generation knows no strings: stop strings are matched on the bytes
of tokens, which the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate.beam import search
from openbook.generate.feed import Feeder, feeder, quiet
from openbook.generate.output import Lines, TokenBytes, logprobs
from openbook.generate.requests import Generation, Request, Token, accept, replay
from openbook.generate.sampler import Sampler
from openbook.generate.sampling import Sampling
from openbook.nn.model import LanguageModel

BATCH = 64  # rows that run together unless the caller says otherwise


class Writer:
    """Some requests on their way: each `advance` writes one token of every row that is not done."""

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        *,
        cached: bool = True,
        chunk: int | None = None,
        token_bytes: TokenBytes | None = None,
        eos: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.requests = requests
        self.token_bytes = token_bytes
        begin = Lines(model.spec.embed.vocab, token_bytes, eos)
        self.lines = [line for request in requests for line in begin.begin(request)]
        self.generations = [line.result for line in self.lines]
        self._options = (cached, chunk)
        self._feed: Feeder | None = None
        self._sampler: Sampler | None = None
        self._tokens: Tensor | None = None  # [B], the ids chosen last

    @property
    def active(self) -> bool:
        """Whether any row is not done."""
        return bool(self.lines)

    def advance(self) -> list[Token]:
        """Writes one token of every row that is not done; an empty list where only prompts were to be read."""
        with quiet(self.model):
            if self._feed is None or self._tokens is None:
                logits = self._start()
            else:
                logits = self._feed.next(self._tokens)
            if self._sampler is None:
                return []
            self._tokens = self._sampler.choose(logits)
            ids = self._tokens.tolist()
            self._sampler.commit(ids)
            found = logprobs(logits, ids, [line.request.sampling.logprobs for line in self.lines])
            events = [
                line.take(token, self.token_bytes, logprob)
                for line, token, logprob in zip(self.lines, ids, found, strict=True)
            ]
            if any(line.done for line in self.lines):
                self._drop()
            return events

    def cancel(self) -> None:
        """Ends all rows that are not done as they are."""
        for line in self.lines:
            line.result.finish = "cancelled"
        self.lines = []

    def _start(self) -> Tensor:
        """Reads the prompts, once for all choices; logits [B,V] of the rows that go on."""
        wanted = any(request.sampling.prompt_logprobs is not None for request in self.requests)
        going = [line for line in self.lines if line.request.room > 0]
        if not wanted and not going:
            self.lines = []
            return torch.empty(0)
        cached, chunk = self._options
        self._feed = feeder(self.model, self.requests, cached=cached, chunk=chunk)
        logits = self._feed.first(self._heard if wanted else None)
        place = {id(request): i for i, request in enumerate(self.requests)}
        places = [place[id(line.request)] for line in going]
        if places and places != list(range(len(self.requests))):
            self._feed.select(places)
            logits = logits[places]
        self.lines = going
        if going:
            self._sampler = Sampler([line.row for line in going], logits.shape[-1], logits.device)
        return logits

    def _heard(self, row: int, start: int, logits: Tensor) -> None:
        """Takes logits [T,V] of a prompt from column `start` on: each says how likely the id after it was."""
        request = self.requests[row]
        after = request.prompt[start + 1 : start + 1 + len(logits)]
        top = request.sampling.prompt_logprobs
        if top is None or not after:
            return
        found = logprobs(logits[: len(after)], after, [top] * len(after))
        for line in self.lines:
            if line.request is request and line.result.prompt_logprobs is not None:
                line.result.prompt_logprobs += found

    def _drop(self) -> None:
        """Goes on without the rows that are done."""
        keep = [place for place, line in enumerate(self.lines) if not line.done]
        self.lines = [self.lines[place] for place in keep]
        if keep and self._feed is not None and self._sampler is not None and self._tokens is not None:
            self._feed.select(keep)
            self._sampler.select(keep)
            self._tokens = self._tokens[keep]


def stream_ids(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    eos: Sequence[int] = (),
    start: Sequence[int] = (),
    context: int | None = None,
    cached: bool = True,
    chunk: int | None = None,
    batch: int = BATCH,
    token_bytes: TokenBytes | None = None,
    cancel: Callable[[], bool] | None = None,
    results: list[Generation] | None = None,
) -> Iterator[Token]:
    """Like `generate_ids`, token by token as they are chosen. Closing the iterator, or `cancel`, ends what is running.

    `results`, when given, is filled with the generations at the end. Beam search has nothing to stream before its end;
    its best beams come then, as single tokens. Arguments are checked at once, not at the first token.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    requests = accept(model, prompts, samplings, eos=eos, start=start, context=context)
    if batch < 1 or (chunk is not None and chunk < 1):
        raise InputError(f"`batch` and `chunk` must be at least 1: got batch={batch}, chunk={chunk}.")
    if token_bytes is None and any(request.sampling.stop for request in requests):
        raise InputError("`stop` strings are matched on the bytes of tokens: hand in `token_bytes`, or use `stop_ids`.")
    return _stream(model, _batches(requests, batch), cached, chunk, token_bytes, cancel, results, eos)


def _stream(
    model: LanguageModel,
    batches: list[list[Request]],
    cached: bool,
    chunk: int | None,
    token_bytes: TokenBytes | None,
    cancel: Callable[[], bool] | None,
    results: list[Generation] | None,
    eos: Sequence[int],
) -> Iterator[Token]:
    found: list[Generation] = []
    for requests in batches:
        if requests[0].sampling.beams > 1:
            beams = search(model, requests, cached=cached, chunk=chunk, token_bytes=token_bytes, cancel=cancel)
            found += beams
            yield from replay(beams)
            continue
        writer = Writer(model, requests, cached=cached, chunk=chunk, eos=eos, token_bytes=token_bytes)
        found += writer.generations
        while writer.active:
            if cancel is not None and cancel():
                writer.cancel()
                break
            yield from writer.advance()
    if results is not None:
        results += sorted(found, key=lambda generation: (generation.prompt, generation.choice))


def _batches(requests: Sequence[Request], rows: int) -> list[list[Request]]:
    """Requests that may run together, in order: at most `rows` rows, one rotary length, one beam setting."""
    open_: dict[tuple[int, Sampling | None], list[Request]] = {}
    done: list[list[Request]] = []
    for request in requests:
        sampling = request.sampling
        key = (request.rotary, sampling if sampling.beams > 1 else None)
        group = open_.setdefault(key, [])
        width = max(sampling.beams, sampling.n)
        if group and sum(max(r.sampling.beams, r.sampling.n) for r in group) + width > rows:
            done.append(group)
            group = open_[key] = []
        group.append(request)
    return done + [group for group in open_.values() if group]


def generate_ids(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    *,
    eos: Sequence[int] = (),
    start: Sequence[int] = (),
    context: int | None = None,
    cached: bool = True,
    chunk: int | None = None,
    batch: int = BATCH,
    token_bytes: TokenBytes | None = None,
    on_token: Callable[[Token], object] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Continues each prompt (a list of ids) as `sampling` says (one for all, or one for each).

    Returns `n` generations per prompt, in the order of prompts and choices.

    eos: ids that end an output. start: what an encoder-decoder's output begins with; its prompts are sources.
    context: the most tokens of prompt and output together; default: the model's own. A longer prompt is an error.
    cached: False runs every step over whole rows, the slow reference.
    chunk: prompt columns that are read at once; None: all. batch: rows that run together.
    token_bytes: the bytes of an id (none for ids that are no text); needed for stop strings and for `Token.text`.
    on_token: called with every `Token` as it is chosen.
    cancel: asked between steps; when true, what is not done ends with finish "cancelled" and what it has.

    Raises `InputError` for what cannot be served, with numbers; `Refusal` for a model that cannot write.
    """
    results: list[Generation] = []
    tokens = stream_ids(
        model,
        prompts,
        sampling,
        eos=eos,
        start=start,
        context=context,
        cached=cached,
        chunk=chunk,
        batch=batch,
        token_bytes=token_bytes,
        cancel=cancel,
        results=results,
    )
    for token in tokens:
        if on_token is not None:
            on_token(token)
    return results
