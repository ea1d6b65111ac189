"""Speculation: a draft of several tokens is cheap, and the model judges all of it in one pass (Leviathan, Kalman &
Matias 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

    written … t │ d1 d2 d3        one pass reads t d1 d2 d3 and gives k+1 rows of logits:
                  ?  ?  ?  ?      what follows t, what follows d1, …

Two kinds of drafts, two rules:

    certain  (prompt lookup; a draft model at temperature 0, or one that shares the request's random numbers)
             each place is chosen exactly as without speculation, with the request's own number; a draft is accepted
             while it is what was chosen. The output is the same with and without, token for token.
    drawn    (a draft model at a temperature: d ~ q)
             d is accepted with probability min(1, p/q), else the token is drawn from max(0, p - q) normalised, and the
             rest of the draft is dropped (alg. 1). The output has the distribution p, exactly.

Either way the first place where the draft is wrong still yields a token: a pass gives 1 to k+1 tokens. p is what the
request's own processors make of the logits, and they see accepted drafts one by one. All numbers come from the
request's own streams, so batch mates change nothing.

Symbols: V vocabulary, k drafts, N rows of logits, alpha the chance that a draft is accepted, gamma drafts a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openbook.generate import draw, processors
from openbook.generate.sampler import Key, Row, Sampler, nothing_left

DRAFTING, ACCEPTING = 1, 2  # branches of a request's stream; its own tokens are drawn from the stream itself

Over = Callable[[Row, int], bool]


@dataclass(frozen=True)
class Proposal:
    """Drafts for one sequence, and the distributions [k,V] they were drawn from; None: they are certain."""

    drafts: Sequence[int] = ()
    chances: Tensor | None = None


@dataclass(frozen=True)
class Case:
    """One sequence of a pass. `own`: a `Sampler` of this row alone, for `historic` rows (made anew if None)."""

    row: Row
    proposal: Proposal = Proposal()
    own: Sampler | None = None


@dataclass(frozen=True)
class Verdict:
    """What a pass wrote: `tokens`, of which the first `accepted` are drafts; at most one more is the model's own."""

    tokens: list[int]
    accepted: int
    tried: int  # drafts that were judged: the accepted ones and the one that was not


def historic(row: Row) -> bool:
    """Whether what was written shapes the row's logits, so that its places must be judged one after the other."""
    s = row.sampling
    counted = s.repetition_penalty != 1.0 or s.frequency_penalty or s.presence_penalty or s.no_repeat_ngram
    return bool(counted or s.forced or s.min_tokens or row.constraint is not None)


def ended(row: Row, token: int) -> bool:
    """The default of what ends an output: a stop id after `min_tokens`, or the end of the grammar."""
    if row.constraint is not None and row.constraint.over:
        return True
    return token in row.stop_ids and len(row.output) >= row.sampling.min_tokens


def fitting(row: Row, drafts: Sequence[int], room: int | None = None) -> list[int]:
    """The drafts that are worth a place in the pass: within the grammar and what room is left for output."""
    most = len(drafts) if room is None else max(0, min(len(drafts), room - 1))  # the pass adds one of its own
    drafts = list(drafts[:most])
    return drafts if row.constraint is None else drafts[: row.constraint.prefix_ok(drafts)]


def verify(cases: Sequence[Case], logits: Tensor, over: Over = ended) -> list[Verdict]:
    """Judges the drafts of some sequences. `logits` [N,V], raw: k+1 rows for each case, one case after the other.

    The tokens are added to the rows. `over(row, token)` is asked after each: true drops what would follow. Raises what
    `Sampler.commit` raises where nothing can be chosen; cases before are then already written.
    """
    starts, at = [], 0
    for case in cases:
        starts.append(at)
        at += len(case.proposal.drafts) + 1
    assert at == len(logits), "one row of logits for the last token and one for each draft"
    swift: dict[Key, list[int]] = {}
    verdicts: dict[int, Verdict] = {}
    for place, case in enumerate(cases):
        if case.proposal.chances is None and not historic(case.row):
            swift.setdefault(case.row.key, []).append(place)
    for places in swift.values():
        chosen = _choose([cases[place] for place in places], [starts[place] for place in places], logits)
        for place, tokens in zip(places, chosen, strict=True):
            verdicts[place] = _accept(cases[place], tokens, over)
    for place, case in enumerate(cases):
        if place not in verdicts:
            part = logits[starts[place] : starts[place] + len(case.proposal.drafts) + 1]
            verdicts[place] = _one_by_one(case, part, over)
    return [verdicts[place] for place in range(len(cases))]


def _choose(cases: Sequence[Case], starts: Sequence[int], logits: Tensor) -> list[list[int]]:
    """What would be chosen at every place of sequences that act alike, all at once."""
    lengths = [len(case.proposal.drafts) + 1 for case in cases]
    rows = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
    part = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
    first = cases[0].row
    s = first.sampling
    if s.logit_bias or s.banned:
        part = Sampler([first], logits.shape[-1], logits.device).process(part)
    if s.greedy:
        tokens = draw.argmax(part).tolist()
    else:
        numbers = [
            draw.uniform(case.row.stream, len(case.row.output) + i)
            for case, length in zip(cases, lengths, strict=True)
            for i in range(length)
        ]
        tokens = draw.choose(part.float(), s, numbers).tolist()
    found = iter(tokens)
    return [[next(found) for _ in range(length)] for length in lengths]


def _accept(case: Case, chosen: Sequence[int], over: Over) -> Verdict:
    """Takes the chosen tokens as long as the drafts before them were right."""
    drafts, row = case.proposal.drafts, case.row
    tokens: list[int] = []
    for place, token in enumerate(chosen):
        if token < 0:
            raise nothing_left(row)
        row.add(token)
        tokens.append(token)
        right = place < len(drafts) and token == drafts[place]
        if not right or over(row, token):
            return Verdict(tokens, place + right, min(place + 1, len(drafts)))
    raise AssertionError("the last place has no draft")


def _one_by_one(case: Case, logits: Tensor, over: Over) -> Verdict:
    """A case whose places depend on each other, or whose drafts were drawn: logits [k+1,V]."""
    row, drafts, chances = case.row, case.proposal.drafts, case.proposal.chances
    sampler = case.own or Sampler([row], logits.shape[-1], logits.device)
    assert sampler.rows == [row], "a sampler of this row alone"
    tokens: list[int] = []
    for place in range(len(logits)):
        line = logits[place : place + 1]
        if chances is None or place == len(drafts) or row.sampling.greedy:
            token = int(sampler.choose(line))
            right = place < len(drafts) and token == drafts[place]
        else:
            token, right = _judge(row, sampler.process(line), drafts[place], chances[place])
        sampler.commit([token])
        tokens.append(token)
        if not right or over(row, token):
            return Verdict(tokens, place + right, min(place + 1, len(drafts)))
    raise AssertionError("the last place has no draft")


def _judge(row: Row, logits: Tensor, draft: int, chances: Tensor) -> tuple[int, bool]:
    """Accepts a drawn draft, or draws what makes up for it: processed logits [1,V], q [V] → (token, accepted)."""
    p = distribution(logits, row)[0]
    q = chances.to(p.device, p.dtype)
    number = draw.uniform(draw.branch(row.stream, ACCEPTING), len(row.output))
    if accepts(number, float(p[draft]), float(q[draft])):
        return draft, True
    rest = residual(p, q)
    # The draw of the request's own stream at this index: nothing else has used it.
    return int(draw.categorical(rest.log().unsqueeze(0), [row.number()])), False


def accepts(number: float, p: float, q: float) -> bool:
    """Whether a draft of chance q stays, where the model gives it p: with probability min(1, p/q)."""
    return number * q < p


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(0, p - q), normalised: what is left of p where q proposed too little. p where the two are the same."""
    left = (p - q).clamp(min=0)
    total = left.sum()
    return left / total if float(total) > 0 else p


def distribution(logits: Tensor, row: Row) -> Tensor:
    """What a request samples from, by steps 7 to 11: processed logits [b,V] → probabilities [b,V] float64."""
    s = row.sampling
    if s.temperature != 1.0:
        logits = processors.temperature(logits, s.temperature)
    return draw.filtered(logits, s).double().softmax(-1)


# What a drafter reads: (numbers of sequences, what is drafted for each so far) → logits [b,V] of what follows.
NextLogits = Callable[[Sequence[int], Sequence[Sequence[int]]], Tensor]


class DraftModel:
    """Drafts of a smaller model of the same vocabulary, through `next_logits`, which owns its state.

    coupled: draft with the very numbers that the model will draw with. Where both agree on the distribution they agree
    on the token, drafts are certain, and sampled output too is the same as without speculation; fewer are accepted.
    """

    def __init__(self, next_logits: NextLogits, *, coupled: bool = False) -> None:
        self.next_logits = next_logits
        self.coupled = coupled

    def propose(self, rows: Sequence[Row], counts: Sequence[int]) -> list[Proposal]:
        """Up to `counts[i]` drafts for each row, by the row's own temperature, filters and grammar."""
        drafts: list[list[int]] = [[] for _ in rows]
        chances: list[list[Tensor]] = [[] for _ in rows]
        grammars = [
            None if row.constraint is None or not n else row.constraint.copy()
            for row, n in zip(rows, counts, strict=True)
        ]
        live = [i for i, count in enumerate(counts) if count > 0]
        while live:
            logits = self.next_logits(live, [drafts[i] for i in live]).float()
            going = []
            for i, line in zip(live, logits.split(1), strict=True):
                row, grammar = rows[i], grammars[i]
                if grammar is not None:
                    line = line.masked_fill(
                        ~torch.from_numpy(grammar.allowed(line.shape[-1])).to(line.device), processors.IMPOSSIBLE
                    )
                token, chance = self._draft(row, line, len(row.output) + len(drafts[i]))
                if token < 0:
                    continue
                drafts[i].append(token)
                if chance is not None:
                    chances[i].append(chance)
                if grammar is not None:
                    grammar.accept(token)
                if len(drafts[i]) < counts[i] and token not in row.stop_ids:
                    going.append(i)
            live = going
        return [Proposal(d, torch.stack(c) if c else None) for d, c in zip(drafts, chances, strict=True)]

    def _draft(self, row: Row, logits: Tensor, index: int) -> tuple[int, Tensor | None]:
        s = row.sampling
        if s.greedy or self.coupled:
            return int(draw.choose(logits, s, [draw.uniform(row.stream, index)])), None
        chance = distribution(logits, row)  # [1,V]
        number = draw.uniform(draw.branch(row.stream, DRAFTING), index)
        return int(draw.categorical(chance.log(), [number])), chance[0]


# ------------------------------------------------------------------------------------------------------- what it brings


def expected(alpha: float, gamma: int) -> float:
    """Tokens of a pass when each of `gamma` drafts is accepted with chance `alpha` (Leviathan et al. 2023, eq. 1)."""
    return gamma + 1.0 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speedup(alpha: float, gamma: int, cost: float = 0.0) -> float:
    """How much faster writing becomes when a draft costs `cost` of a pass (Theorem 3.8)."""
    return expected(alpha, gamma) / (gamma * cost + 1)


def operations(alpha: float, gamma: int, cost: float = 0.0) -> float:
    """How many times the arithmetic without speculation; `cost`: a draft's share of a token's (Theorem 3.11)."""
    return (gamma * cost + gamma + 1) / expected(alpha, gamma)


@dataclass
class Tally:
    """What speculation did: for one request, or summed over many."""

    passes: int = 0
    proposed: int = 0
    tried: int = 0
    accepted: int = 0
    tokens: int = 0

    def note(self, proposal: Proposal, verdict: Verdict) -> None:
        """Counts a pass."""
        self.passes += 1
        self.proposed += len(proposal.drafts)
        self.tried += verdict.tried
        self.accepted += verdict.accepted
        self.tokens += len(verdict.tokens)

    @property
    def alpha(self) -> float:
        """The chance that a draft was accepted, among those that were judged."""
        return self.accepted / self.tried if self.tried else 0.0

    @property
    def per_pass(self) -> float:
        """Tokens of a pass."""
        return self.tokens / self.passes if self.passes else 0.0


@dataclass
class Pace:
    """How many drafts the next pass of a sequence should have, from what became of the last ones.

    The number that writes fastest at the recent acceptance, `cost` being what one draft adds to a pass (its drafting
    and its place in the pass, as a share of a pass without). Where none pays, one draft is tried now and then, ever
    more seldom while it fails, so that a drafter that is always wrong costs `cost / SELDOM` in the long run.
    """

    most: int = 8
    cost: float = 0.1
    hits: float = 1.4  # begins hopeful: two accepted of three
    tries: float = 2.1
    wait: int = 0  # passes until the next try
    patience: int = 2

    FORGET = 0.85  # weight of what was, at each pass
    SELDOM = 64

    def next(self) -> int:
        """Drafts for the next pass; 0: none."""
        if self.most < 1:
            return 0
        alpha = min(self.hits / self.tries, 0.995) if self.tries else 0.0
        best = max(range(self.most + 1), key=lambda gamma: speedup(alpha, gamma, self.cost))
        if best:
            return best
        if self.wait > 0:
            self.wait -= 1
            return 0
        return 1

    def note(self, verdict: Verdict) -> None:
        """Takes what became of a pass that had drafts."""
        if not verdict.tried:
            return
        self.hits = self.hits * self.FORGET + verdict.accepted
        self.tries = self.tries * self.FORGET + verdict.tried
        if verdict.accepted:
            self.patience = 2
        else:
            self.patience = min(2 * self.patience, self.SELDOM)
        self.wait = self.patience
