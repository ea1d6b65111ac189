"""Beam search: the likeliest outputs found by keeping, at every step, the best few of all continuations.

A step, for one prompt with W beams:

    scores[W,V] = running[W] + processed(log_softmax(logits))        processors 1 to 6 see log-probabilities
    the best K of the W·V continuations;  K = max(2, 1 + end ids)·W, so that W of them go on even if all others end
    ended ones among the best W join the finished outputs, with score sum / length ** length_penalty; the best W stay
    the best W that did not end run on

A prompt is done when no running beam can still improve on its finished ones (as `early_stopping` says), or, with
early_stopping=True, as soon as W outputs are finished:

    False     judged by the best running beam at its present length (a heuristic)
    "never"   judged at the length that is best for it: the greatest for length_penalty > 0
    True      done at W finished outputs

Beams, scores, ties and order are those of `transformers.generate` (5.23): arithmetic is in float32 in the same order.
Prompts that are done leave the batch, which changes nothing for the others.

Symbols: B prompts, W beams, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openbook.errors import InputError, OpenbookError
from openbook.generate.feed import Feeder, feeder, quiet
from openbook.generate.requests import Generation, Request
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling
from openbook.generate.stops import Watch
from openbook.nn.model import LanguageModel

NEVER = -1.0e9  # the score of what must not be chosen


@dataclass
class _Ended:
    """A finished output of one prompt; empty until one is found."""

    ids: list[int] = field(default_factory=list)
    stopped_by: int | bytes | None = None
    excess: int = 0


class _Hunt:
    """One prompt: its running beams and its finished outputs."""

    def __init__(self, request: Request, width: int) -> None:
        self.request = request
        self.running = torch.tensor([0.0, *[NEVER] * (width - 1)])  # [W]: at first only one beam is alive
        self.texts: list[list[int]] = [[] for _ in range(width)]
        self.bytes = [b""] * width  # of each beam, where stop strings are looked for
        self.scores = torch.full((width,), NEVER)  # [W] of finished outputs, best first
        self.finished = torch.zeros(width, dtype=torch.bool)
        self.ended = [_Ended() for _ in range(width)]
        self.done = False


class _Search:
    """A batch of prompts with one sampling."""

    def __init__(
        self, requests: Sequence[Request], token_bytes: Callable[[int], bytes] | None, sampling: Sampling
    ) -> None:
        self.sampling = sampling
        self.width = sampling.beams
        self.token_bytes = token_bytes
        self.hunts = [_Hunt(request, self.width) for request in requests]
        self.length = 0  # output tokens of running beams

    def step(self, scores: Tensor) -> list[tuple[int, int]]:
        """Takes processed log-probabilities [B·W,V]; the (row, id) of every beam that runs on, in order of prompts."""
        width, vocab = self.width, scores.shape[-1]
        live = [hunt for hunt in self.hunts if not hunt.done]
        running = torch.stack([hunt.running for hunt in live]).to(scores.device)
        total = (scores.view(len(live), width, vocab) + running.unsqueeze(2)).flatten(1)  # [B,W·V]
        ends = len(live[0].request.stop_ids)
        values, places = total.topk(min(max(2, 1 + ends) * width, total.shape[1]))  # [B,K]
        values, chosen = values.cpu(), places.tolist()
        if bool(values.isnan().any()):
            raise OpenbookError(f"The model's logits are not numbers (NaN) at output token {self.length}.")
        self.length += 1
        moves: list[tuple[int, int]] = []
        for number, hunt in enumerate(live):
            candidates = [(place // vocab, place % vocab) for place in chosen[number]]
            kept = self._judge(hunt, values[number], candidates)
            if not hunt.done:
                moves += [(number * width + beam, token) for beam, token in kept]
        return moves

    def _judge(self, hunt: _Hunt, values: Tensor, candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Finishes, keeps and drops one prompt's candidates (values [K], best first); those that run on."""
        stops = [self._stop(hunt, beam, token) for beam, token in candidates]
        hits = torch.tensor([stop is not None for stop in stops])
        self._finish(hunt, values, candidates, stops, hits)
        hunt.running, order = (values + hits.float() * NEVER).topk(self.width)
        # `topk` gives the values in order; the beams follow.
        kept = [candidates[place] for place in order.tolist()]
        hunt.bytes = [self._bytes(hunt, beam, token) for beam, token in kept]
        hunt.texts = [[*hunt.texts[beam], token] for beam, token in kept]
        hunt.done = bool(hits.all()) or not self._may_improve(hunt)
        return kept

    def _finish(
        self,
        hunt: _Hunt,
        values: Tensor,
        candidates: list[tuple[int, int]],
        stops: list[_Ended | None],
        hits: Tensor,
    ) -> None:
        top = torch.arange(len(candidates)) < self.width  # the others are only there so that enough run on
        ending = hits & top
        scores = values / self.length**self.sampling.length_penalty
        if self.sampling.early_stopping is True and bool(hunt.finished.all()):
            scores = scores + NEVER
        scores = scores + (~ending).float() * NEVER
        merged, order = torch.cat([hunt.scores, scores]).topk(self.width)
        hunt.finished = torch.cat([hunt.finished, ending])[order]
        hunt.scores = merged
        pool: list[_Ended | None] = [*hunt.ended, *stops]
        hunt.ended = [found if (found := pool[place]) is not None else _Ended() for place in order.tolist()]

    def _may_improve(self, hunt: _Hunt) -> bool:
        early, penalty = self.sampling.early_stopping, self.sampling.length_penalty
        if early is True and bool(hunt.finished.all()):
            return False
        length = hunt.request.room if early == "never" and penalty > 0 else self.length
        best = hunt.running[0] / length**penalty
        worst = torch.where(hunt.finished, hunt.scores.min(), NEVER)
        return bool((best > worst).any())

    def _bytes(self, hunt: _Hunt, beam: int, token: int) -> bytes:
        """What stop strings are looked for in: the end of the beam's bytes, long enough for the longest of them."""
        if not self.sampling.stop or self.token_bytes is None:
            return b""
        text = hunt.bytes[beam] + self.token_bytes(token)
        return text[max(0, len(text) - max(len(stop) for stop in self.sampling.stop_bytes) + 1) :]

    def _stop(self, hunt: _Hunt, beam: int, token: int) -> _Ended | None:
        """Whether a beam ends with this token, and how."""
        ids = [*hunt.texts[beam], token]
        if self.length >= self.sampling.min_tokens:
            if token in hunt.request.stop_ids:
                return _Ended(ids, token)
            if self.sampling.stop and self.token_bytes is not None:
                watch = Watch(self.sampling.stop_bytes)
                watch.held = hunt.bytes[beam]
                watch.feed(self.token_bytes(token))
                if watch.found is not None:
                    return _Ended(ids, watch.found, watch.excess)
        return _Ended(ids) if self.length >= hunt.request.room else None

    def results(self, hunt: _Hunt) -> list[Generation]:
        """The best `n` outputs of a prompt, best first; running beams fill up what a cancelled search left open."""
        found = [
            Generation(
                hunt.request.number,
                0,
                e.ids,
                "length" if e.stopped_by is None else "stop",
                e.stopped_by,
                e.excess,
                score=s,
            )
            for e, s, finished in zip(hunt.ended, hunt.scores.tolist(), hunt.finished.tolist(), strict=True)
            if finished
        ]
        if not hunt.done:
            scores = (hunt.running / max(self.length, 1) ** self.sampling.length_penalty).tolist()
            found += [
                Generation(hunt.request.number, 0, ids, "cancelled", score=score)
                for ids, score in zip(hunt.texts, scores, strict=True)
            ]
        if not found:
            raise InputError(
                f"No beam of prompt {hunt.request.number} could be finished: banned ids, `no_repeat_ngram` or "
                "`min_tokens` forbid all that could follow. Relax one of them."
            )
        for choice, generation in enumerate(found):
            generation.choice = choice
        return found[: self.sampling.n]


def search(
    model: LanguageModel,
    requests: Sequence[Request],
    *,
    cached: bool = True,
    chunk: int | None = None,
    token_bytes: Callable[[int], bytes] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Beam search for requests of one `Sampling` with `beams` > 1: the best `n` outputs of each, best first."""
    sampling = requests[0].sampling
    vocab = model.spec.embed.vocab
    if sampling.beams > vocab:
        raise InputError(f"`beams` must be at most the vocabulary ({vocab}): got {sampling.beams}.")
    empty = [
        Generation(request.number, choice) for request in requests if not request.room for choice in range(sampling.n)
    ]
    going = [request for request in requests if request.room]
    if not going:
        return empty
    hunt = _Search(going, token_bytes, sampling)
    with quiet(model):
        _run(model, hunt, feeder(model, going, cached=cached, chunk=chunk), cancel)
    return empty + [generation for one in hunt.hunts for generation in hunt.results(one)]


def _run(model: LanguageModel, hunt: _Search, feed: Feeder, cancel: Callable[[], bool] | None) -> None:
    width = hunt.width
    logits = feed.first().repeat_interleave(width, dim=0)  # every beam starts from the same prompt
    rows = [
        Row(one.request.sampling, one.request.prompt, one.request.stop_ids) for one in hunt.hunts for _ in range(width)
    ]
    sampler = Sampler(rows, logits.shape[-1], logits.device)
    read_once = True
    while cancel is None or not cancel():
        moves = hunt.step(sampler.process(logits.float().log_softmax(-1)))
        if not moves:
            return
        places, tokens = zip(*moves, strict=True)
        feed.select([place // width for place in places] if read_once else places)
        read_once = False
        sampler.select(places)
        sampler.commit(tokens)
        logits = feed.next(torch.tensor(tokens, device=model.device))
