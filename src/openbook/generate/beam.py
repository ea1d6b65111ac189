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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openbook.errors import InputError, OpenbookError
from openbook.generate.feed import Feeder, feeder, quiet
from openbook.generate.requests import Generation, Request
from openbook.generate.sampler import Row, Sampler
from openbook.generate.stops import Watch
from openbook.nn.model import LanguageModel

NEVER = -1.0e9  # the score of what must not be chosen


@dataclass
class _Ended:
    """A finished output of one prompt; empty until one is found."""

    ids: list[int] = field(default_factory=list)
    stopped_by: int | bytes | None = None
    excess: int = 0


class Hunt:
    """The search for one request: its running beams and its finished outputs. It knows no model: whoever drives it says
    how likely every continuation of every beam is, and takes the moves.

        hunt = Hunt(request)                                         # W rows with the same past
        while moves := hunt.step(processed log-probabilities [W,V]):
            row w goes on as a copy of row moves[w][0], with the id moves[w][1]
        hunt.results()
    """

    def __init__(self, request: Request, token_bytes: Callable[[int], bytes] | None = None) -> None:
        self.request = request
        self.sampling = request.sampling
        self.width = width = request.sampling.beams
        self.token_bytes = token_bytes
        self.length = 0  # output tokens of running beams
        self.running = torch.tensor([0.0, *[NEVER] * (width - 1)])  # [W]: at first only one beam is alive
        self.texts: list[list[int]] = [[] for _ in range(width)]
        self.bytes = [b""] * width  # of each beam, where stop strings are looked for
        self.scores = torch.full((width,), NEVER)  # [W] of finished outputs, best first
        self.finished = torch.zeros(width, dtype=torch.bool)
        self.ended = [_Ended() for _ in range(width)]
        self.done = False

    def step(self, scores: Tensor) -> list[tuple[int, int]]:
        """Takes processed log-probabilities [W,V]; the (beam, id) of each beam that runs on, none when all is found."""
        vocab = scores.shape[-1]
        total = (scores + self.running.to(scores.device).unsqueeze(1)).flatten()  # [W·V]
        count = max(2, 1 + len(self.request.stop_ids)) * self.width
        values, places = total.topk(min(count, len(total)))  # [K]
        values, chosen = values.cpu(), places.tolist()
        if bool(values.isnan().any()):
            raise OpenbookError(f"The model's logits are not numbers (NaN) at output token {self.length}.")
        self.length += 1
        kept = self._judge(values, [(place // vocab, place % vocab) for place in chosen])
        return [] if self.done else kept

    def _judge(self, values: Tensor, candidates: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Finishes, keeps and drops candidates (values [K], best first); those that run on."""
        stops = [self._stop(beam, token) for beam, token in candidates]
        hits = torch.tensor([stop is not None for stop in stops])
        self._finish(values, stops, hits)
        self.running, order = (values + hits.float() * NEVER).topk(self.width)
        # `topk` gives the values in order; the beams follow.
        kept = [candidates[place] for place in order.tolist()]
        # Where too little was possible, a beam repeats the best one's move; its score keeps it from ever being chosen.
        kept = [move if score > -math.inf else kept[0] for move, score in zip(kept, self.running.tolist(), strict=True)]
        self.bytes = [self._bytes(beam, token) for beam, token in kept]
        self.texts = [[*self.texts[beam], token] for beam, token in kept]
        self.done = bool(hits.all()) or not self._may_improve()
        return kept

    def _finish(self, values: Tensor, stops: list[_Ended | None], hits: Tensor) -> None:
        top = torch.arange(len(stops)) < self.width  # the others are only there so that enough run on
        ending = hits & top & (values > NEVER / 2)  # and no beam ends that was never alive
        scores = values / self.length**self.sampling.length_penalty
        if self.sampling.early_stopping is True and bool(self.finished.all()):
            scores = scores + NEVER
        scores = scores + (~ending).float() * NEVER
        self.scores, order = torch.cat([self.scores, scores]).topk(self.width)
        self.finished = torch.cat([self.finished, ending])[order]
        pool: list[_Ended | None] = [*self.ended, *stops]
        self.ended = [found if (found := pool[place]) is not None else _Ended() for place in order.tolist()]

    def _may_improve(self) -> bool:
        early, penalty = self.sampling.early_stopping, self.sampling.length_penalty
        if early is True and bool(self.finished.all()):
            return False
        length = self.request.room if early == "never" and penalty > 0 else self.length
        best = self.running[0] / length**penalty
        worst = torch.where(self.finished, self.scores.min(), NEVER)
        return bool((best > worst).any())

    def _bytes(self, beam: int, token: int) -> bytes:
        """What stop strings are looked for in: the end of the beam's bytes, long enough for the longest of them."""
        if not self.sampling.stop or self.token_bytes is None:
            return b""
        text = self.bytes[beam] + self.token_bytes(token)
        return text[max(0, len(text) - max(len(stop) for stop in self.sampling.stop_bytes) + 1) :]

    def _stop(self, beam: int, token: int) -> _Ended | None:
        """Whether a beam ends with this token, and how."""
        ids = [*self.texts[beam], token]
        if self.length >= self.sampling.min_tokens:
            if token in self.request.stop_ids:
                return _Ended(ids, token)
            if self.sampling.stop and self.token_bytes is not None:
                watch = Watch(self.sampling.stop_bytes)
                watch.held = self.bytes[beam]
                watch.feed(self.token_bytes(token))
                if watch.found is not None:
                    return _Ended(ids, watch.found, watch.excess)
        return _Ended(ids) if self.length >= self.request.room else None

    def results(self) -> list[Generation]:
        """The best `n` outputs, best first; running beams fill up what a cancelled search left open."""
        number = self.request.number
        found = [
            Generation(
                number, 0, e.ids, "length" if e.stopped_by is None else "stop", e.stopped_by, e.excess, score=score
            )
            for e, score, finished in zip(self.ended, self.scores.tolist(), self.finished.tolist(), strict=True)
            if finished
        ]
        if not self.done:
            scores = (self.running / max(self.length, 1) ** self.sampling.length_penalty).tolist()
            found += [
                Generation(number, 0, ids, "cancelled", score=score)
                for ids, score in zip(self.texts, scores, strict=True)
            ]
        if not found:
            raise InputError(
                f"No beam of prompt {number} could be finished: banned ids, `no_repeat_ngram`, `min_tokens` or the "
                "`grammar` forbid all that could follow. Relax one of them."
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
    hunts = [Hunt(request, token_bytes) for request in going]
    with quiet(model):
        _run(model, hunts, feeder(model, going, cached=cached, chunk=chunk), cancel)
    return empty + [generation for hunt in hunts for generation in hunt.results()]


def _run(model: LanguageModel, hunts: list[Hunt], feed: Feeder, cancel: Callable[[], bool] | None) -> None:
    width = hunts[0].width
    logits = feed.first().repeat_interleave(width, dim=0)  # every beam starts from the same prompt
    rows = [
        Row(hunt.request.sampling, hunt.request.prompt, hunt.request.stop_ids) for hunt in hunts for _ in range(width)
    ]
    sampler = Sampler(rows, logits.shape[-1], logits.device)
    read_once = True
    while cancel is None or not cancel():
        scores = sampler.process(logits.float().log_softmax(-1)).split(width)
        found = [hunt.step(part) for hunt, part in zip(hunts, scores, strict=True)]
        moves = [(first * width + beam, token) for first, some in enumerate(found) for beam, token in some]
        if not moves:
            return
        hunts = [hunt for hunt in hunts if not hunt.done]
        places, tokens = zip(*moves, strict=True)
        feed.select([place // width for place in places] if read_once else places)
        read_once = False
        sampler.select(places)
        sampler.commit(tokens)
        logits = feed.next(torch.tensor(tokens, device=model.device))
