"""One output on its way: which tokens it has, whether it is done and why, which of its bytes are certain.

Shared by the loop and the engine. Generation knows no strings: stop strings are matched on the bytes of tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from openbook.errors import GrammarError, InputError
from openbook.generate.constraints import Constraint, Vocabulary
from openbook.generate.grammars import Grammar
from openbook.generate.requests import Generation, Logprob, Request, Token
from openbook.generate.sampler import Row
from openbook.generate.stops import Watch

TokenBytes = Callable[[int], bytes]


GRAMMARS = 64  # compiled ones that are kept: most requests ask for what others asked for


class Line:
    """One row of a running batch: a choice of a request and what becomes of it."""

    def __init__(self, request: Request, choice: int, vocab: int, constraint: Constraint | None = None) -> None:
        sampling = request.sampling
        self.request = request
        self.vocab = vocab
        self.row = Row(sampling, request.prompt, request.stop_ids, choice, constraint=constraint)
        self.watch = Watch(sampling.stop_bytes)
        self.result = Generation(
            prompt=request.number,
            choice=choice,
            ids=self.row.output,
            logprobs=None if sampling.logprobs is None else [],
            prompt_logprobs=None if sampling.prompt_logprobs is None else [None],
        )
        self.done = False

    def take(self, token: int, token_bytes: TokenBytes | None, logprob: Logprob | None, version: int = 0) -> Token:
        """Notes that `token` was written: does it end this row, and which bytes are certain now?"""
        result, request, text = self.result, self.request, b""
        count, constraint = len(result.ids), self.row.constraint
        stopping = count >= request.sampling.min_tokens
        if stopping and token in request.stop_ids:
            result.finish, result.stopped_by, self.done = "stop", token, True
        elif token_bytes is not None:
            text = self.watch.feed(token_bytes(token), stopping=stopping)
            if self.watch.found is not None:
                result.finish, result.stopped_by, self.done = "stop", self.watch.found, True
                result.excess = self.watch.excess
        if not self.done and constraint is not None and constraint.finished:
            result.finish, self.done = "stop", True
        if not self.done and count >= request.room:
            result.finish, self.done = "length", True
        if self.done:
            text += self.watch.finish()
        if logprob is not None and result.logprobs is not None:
            result.logprobs.append(logprob)
        finish = result.finish if self.done else None
        return Token(result.prompt, result.choice, count - 1, token, text, logprob, finish, version, result.cached)


class Lines:
    """Begins the outputs of requests; compiles their grammars over the tokenizer's bytes, which are read once."""

    def __init__(self, vocab: int, token_bytes: TokenBytes | None, eos: Collection[int]) -> None:
        self.vocab = vocab
        self.token_bytes = token_bytes
        self.eos = eos
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()  # requests are checked where they are asked, and begun in the engine's thread
        self._known: dict[tuple[Grammar, frozenset[int]], Constraint] = {}  # the starts of grammars, the latest last

    def begin(self, request: Request) -> list[Line]:
        """A line for each choice. `GrammarError`: no output can be held to it; `InputError`: for want of bytes."""
        sampling = request.sampling
        if self.token_bytes is None and (sampling.stop or sampling.grammar is not None):
            raise InputError(
                "`stop` strings and a `grammar` are matched on the bytes of tokens: hand in `token_bytes` "
                "(or use `stop_ids`)."
            )
        if sampling.grammar is None or self.token_bytes is None:
            return [Line(request, choice, self.vocab) for choice in range(sampling.n)]
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary([self.token_bytes(i) for i in range(self.vocab)], self.eos)
            key = sampling.grammar, request.stop_ids
            try:
                first = self._known.pop(key, None) or Constraint.compile(self._vocabulary, *key)
            except InputError as error:
                raise GrammarError(str(error)) from error
            self._known[key] = first
            if len(self._known) > GRAMMARS:
                del self._known[next(iter(self._known))]
            return [Line(request, choice, self.vocab, first.copy()) for choice in range(sampling.n)]


def logprobs(logits: Tensor, ids: Sequence[int], tops: Sequence[int | None]) -> list[Logprob | None]:
    """The log-probability of each row's id and the best alternatives, from raw logits [B,V]; None where not wanted."""
    most = max((top for top in tops if top is not None), default=None)
    if most is None:
        return [None] * len(ids)
    scores = logits.float().log_softmax(-1)
    own = scores.gather(1, torch.tensor(ids, device=logits.device).unsqueeze(1)).squeeze(1).tolist()
    values, places = (part.tolist() for part in scores.topk(most, dim=-1))
    return [
        None if top is None else Logprob(i, o, tuple(zip(place[:top], value[:top], strict=True)))
        for i, o, top, value, place in zip(ids, own, tops, values, places, strict=True)
    ]
