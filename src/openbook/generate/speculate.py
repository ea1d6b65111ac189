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

from openbook.errors import OpenbookError
from openbook.generate import draw, processors
from openbook.generate.constraints import Constraint, masks
from openbook.generate.sampler import Key, Row, Sampler, hold, take

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
    error: OpenbookError | None = None  # why this sequence cannot go on; the others do


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

    The tokens are added to the rows. `over(row, token)` is asked after each: true drops what would follow.
    """
    starts, at = [], 0
    for case in cases:
        starts.append(at)
        at += len(case.proposal.drafts) + 1
    assert at == len(logits), "one row of logits for the last token and one for each draft"
    swift: dict[tuple[Key, bool], list[int]] = {}
    verdicts: dict[int, Verdict] = {}
    for place, case in enumerate(cases):
        if not historic(case.row):
            drawn = case.proposal.chances is not None and not case.row.sampling.greedy
            swift.setdefault((case.row.key, drawn), []).append(place)
    for (_, drawn), places in swift.items():
        some = [cases[place] for place in places]
        part = _processed(some, [starts[place] for place in places], logits)
        chosen = _judge_all(some, part) if drawn else _choose(some, part)
        for place, tokens in zip(places, chosen, strict=True):
            verdicts[place] = _accept(cases[place], tokens, over)
    for place, case in enumerate(cases):
        if place not in verdicts:
            part = logits[starts[place] : starts[place] + len(case.proposal.drafts) + 1]
            verdicts[place] = _one_by_one(case, part, over)
    return [verdicts[place] for place in range(len(cases))]


def _processed(cases: Sequence[Case], starts: Sequence[int], logits: Tensor) -> Tensor:
    """The logits of sequences that act alike and have no history, one after the other: [n,V]."""
    places = zip(cases, starts, strict=True)
    rows = [start + i for case, start in places for i in range(len(case.proposal.drafts) + 1)]
    part = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
    s = cases[0].row.sampling
    return Sampler([cases[0].row], part.shape[-1], part.device).process(part) if s.logit_bias or s.banned else part


def _choose(cases: Sequence[Case], logits: Tensor) -> list[list[int]]:
    """What is chosen at every place of sequences that act alike, all at once: logits [n,V] → as `_judge_all`."""
    lengths = [len(case.proposal.drafts) + 1 for case in cases]
    s = cases[0].row.sampling
    if s.greedy:
        tokens = draw.argmax(logits).tolist()
    else:
        numbers = [
            draw.uniform(case.row.stream, len(case.row.output) + i)
            for case, length in zip(cases, lengths, strict=True)
            for i in range(length)
        ]
        tokens = draw.choose(logits.float(), s, numbers).tolist()
    found = []
    for case, length in zip(cases, lengths, strict=True):
        right = [token == draft for token, draft in zip(tokens, case.proposal.drafts, strict=False)]
        found.append(tokens[: right.index(False) + 1 if False in right else length])
        tokens = tokens[length:]
    return found


def _judge_all(cases: Sequence[Case], logits: Tensor) -> list[list[int]]:
    """Drawn drafts of sequences that act alike, all at once: logits [n,V] → of each what is accepted, and one more."""
    p = distribution(logits.float(), cases[0].row)  # [n,V]
    kept: list[int] = []  # drafts that are accepted, of each case
    own: list[int] = []  # the row of p that the token after them comes from
    q = torch.zeros(len(cases), p.shape[1], device=p.device)  # what was proposed there; nothing after the last draft
    at = 0
    for number, case in enumerate(cases):
        drafts, chances = case.proposal.drafts, case.proposal.chances
        assert chances is not None
        index = torch.tensor(drafts, dtype=torch.int64, device=p.device).unsqueeze(1)
        model = p[at : at + len(drafts)].gather(1, index).squeeze(1).tolist()
        draft = chances.to(p.device).gather(1, index).squeeze(1).tolist()
        stream, first = draw.branch(case.row.stream, ACCEPTING), len(case.row.output)
        right = [
            accepts(draw.uniform(stream, first + i), *both) for i, both in enumerate(zip(model, draft, strict=True))
        ]
        kept.append(right.index(False) if False in right else len(drafts))
        own.append(at + kept[-1])
        if kept[-1] < len(drafts):
            q[number] = chances[kept[-1]]
        at += len(drafts) + 1
    # The draw of a request's own stream at this index: nothing else has used it.
    numbers = [draw.uniform(case.row.stream, len(case.row.output) + k) for case, k in zip(cases, kept, strict=True)]
    tokens = draw.categorical(residual(p[torch.tensor(own, device=p.device)], q).log(), numbers).tolist()
    return [[*case.proposal.drafts[:k], token] for case, k, token in zip(cases, kept, tokens, strict=True)]


def _accept(case: Case, chosen: Sequence[int], over: Over) -> Verdict:
    """Takes the accepted drafts and the one token after them, as long as the output goes on."""
    row, drafts = case.row, case.proposal.drafts
    tokens: list[int] = []
    for place, token in enumerate(chosen):
        if error := take(row, token):
            return Verdict(tokens, place, place, error)
        tokens.append(token)
        right = place < len(chosen) - 1
        if not right or over(row, token):
            return Verdict(tokens, place + right, min(place + 1, len(drafts)))
    raise AssertionError("the last token is no draft")


def _one_by_one(case: Case, logits: Tensor, over: Over) -> Verdict:
    """A case whose places depend on each other: logits [k+1,V]."""
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
        if error := take(row, token):
            return Verdict(tokens, place, place, error)
        tokens.append(token)
        if not right or over(row, token):
            return Verdict(tokens, place + right, min(place + 1, len(drafts)))
    raise AssertionError("the last place has no draft")


def _judge(row: Row, logits: Tensor, draft: int, chances: Tensor) -> tuple[int, bool]:
    """Accepts a drawn draft, or draws what makes up for it: processed logits [1,V], q [V] → (token, accepted)."""
    p = distribution(logits, row)  # [1,V]
    q = chances.to(p.device).unsqueeze(0)
    number = draw.uniform(draw.branch(row.stream, ACCEPTING), len(row.output))
    if accepts(number, float(p[0, draft]), float(q[0, draft])):
        return draft, True
    return int(draw.categorical(residual(p, q).log(), [row.number()])), False


def accepts(number: float, p: float, q: float) -> bool:
    """Whether a draft of chance q stays, where the model gives it p: with probability min(1, p/q)."""
    return number * q < p


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(0, p - q), normalised: what is left of p where q proposed too little, [b,V]. p where the two are the same."""
    left = (p - q).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, p)


def distribution(logits: Tensor, row: Row) -> Tensor:
    """What a request samples from, by steps 7 to 11: processed logits [b,V] float32 → probabilities [b,V]."""
    s = row.sampling
    if s.temperature != 1.0:
        logits = processors.temperature(logits, s.temperature)
    return draw.filtered(logits, s).softmax(-1)


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
        live = [i for i, count in enumerate(counts) if count > 0]
        grammars = {i: c.copy() for i in live if (c := rows[i].constraint) is not None}
        while live:
            logits = self.next_logits(live, [drafts[i] for i in live]).float()
            logits = _held(logits, [grammars.get(i) for i in live])
            alike: dict[Key, list[int]] = {}
            for line, i in enumerate(live):
                alike.setdefault(rows[i].key, []).append(line)
            going = []
            for lines in alike.values():
                some = [live[line] for line in lines]
                indices = [len(rows[i].output) + len(drafts[i]) for i in some]
                tokens, part = self._draft([rows[i] for i in some], logits[lines], indices)
                for order, (i, token) in enumerate(zip(some, tokens, strict=True)):
                    if token < 0:
                        continue
                    drafts[i].append(token)
                    if part is not None:
                        chances[i].append(part[order])
                    if i in grammars:
                        grammars[i].accept(token)
                    if len(drafts[i]) < counts[i] and token not in rows[i].stop_ids:
                        going.append(i)
            live = sorted(going)
        return [Proposal(d, torch.stack(c) if c else None) for d, c in zip(drafts, chances, strict=True)]

    def _draft(self, rows: Sequence[Row], logits: Tensor, indices: Sequence[int]) -> tuple[list[int], Tensor | None]:
        """One draft of each of some rows that act alike, logits [b,V], and what they were drawn from."""
        s = rows[0].sampling
        if s.greedy or self.coupled:
            numbers = [draw.uniform(row.stream, index) for row, index in zip(rows, indices, strict=True)]
            return draw.choose(logits, s, numbers).tolist(), None
        part = distribution(logits, rows[0])  # [b,V]
        streams = [draw.branch(row.stream, DRAFTING) for row in rows]
        numbers = [draw.uniform(stream, index) for stream, index in zip(streams, indices, strict=True)]
        return draw.categorical(part.log(), numbers).tolist(), part


def _held(logits: Tensor, grammars: Sequence[Constraint | None]) -> Tensor:
    """Logits [b,V] without the ids that each row's grammar does not allow."""
    lines = [line for line, grammar in enumerate(grammars) if grammar is not None]
    if not lines:
        return logits
    allowed = masks([grammar for grammar in grammars if grammar is not None], logits.shape[1])
    return hold(logits, lines, torch.from_numpy(allowed).to(logits.device))
