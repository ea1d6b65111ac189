"""Law 3: speculation changes how fast, never what. Certain drafts: the same tokens. Drawn: the same distribution.

The model here is a function of the whole history (hashed into logits), so a token that was judged after the wrong past
shows. Symbols: N requests, V vocabulary, k drafts. Seeded faults: drafts accepted with probability p; a rejected draft
made up for by p instead of max(0, p - q); one number for drafting and accepting; a place judged after the wrong past.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from openbook.generate import speculate
from openbook.generate.constraints import Constraint, Vocabulary
from openbook.generate.grammars import Grammar, Regex
from openbook.generate.lookup import Lookup, lookup
from openbook.generate.pace import Pace, Tally, expected, operations, speedup
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling
from openbook.generate.speculate import Case, DraftModel, Proposal, Verdict, verify
from tests.generate.copying import Copying
from tests.laws.test_sampling_distribution import statistic

V = 24
ENDS = frozenset({0})


def logits_after(history: Sequence[int], sharp: float = 2.0, salt: int = 0) -> Tensor:
    """Logits [V] of what follows a history: the last two ids decide most, so that texts repeat; all of it counts."""
    near = hash((salt, *history[-2:])) & 0xFFFFFFFF
    far = hash((salt, 7, *history)) & 0xFFFFFFFF
    a = torch.randn(V, generator=torch.Generator().manual_seed(near))
    b = torch.randn(V, generator=torch.Generator().manual_seed(far))
    return sharp * a + 0.3 * b


def plain(row: Row, most: int) -> list[int]:
    """The output without speculation."""
    sampler = Sampler([row], V)
    while len(row.output) < most:
        sampler.commit(sampler.choose(logits_after([*row.prompt, *row.output])[None]).tolist())
        if speculate.ended(row, row.output[-1]):
            break
    return row.output[:most]


Drafter = Callable[[Sequence[Row]], list[Proposal]]


def speculative(rows: list[Row], most: int, drafter: Drafter, tally: Tally | None = None) -> list[list[int]]:
    """The outputs of a batch with speculation."""
    live, own = list(rows), {row: Sampler([row], V) for row in rows}
    while live:
        proposals = drafter(live)
        cases, lines = [], []
        for row, proposal in zip(live, proposals, strict=True):
            cases.append(Case(row, proposal, own[row]))
            past = [*row.prompt, *row.output]
            lines += [logits_after([*past, *proposal.drafts[:i]]) for i in range(len(proposal.drafts) + 1)]
        for proposal, verdict in zip(proposals, verify(cases, torch.stack(lines)), strict=True):
            if tally is not None:
                tally.note(proposal, verdict)
        live = [row for row in live if len(row.output) < most and not speculate.ended(row, row.output[-1])]
    return [row.output[:most] for row in rows]


def from_lookup(rows: Sequence[Row]) -> list[Proposal]:
    return [Proposal(lookup([*row.prompt, *row.output], 4, shortest=1)) for row in rows]


def mostly_right(rows: Sequence[Row]) -> list[Proposal]:
    """Drafts that know the truth most of the time, and are of every length."""
    found = []
    for row in rows:
        rng = random.Random(len(row.output) + 31 * row.prompt[0])
        other = Row(row.sampling, row.prompt, seed=row.seed, choice=row.choice, output=list(row.output), constraint=None
                    if row.constraint is None else row.constraint.copy())  # fmt: skip
        count = rng.randrange(6)
        truth = plain(other, len(row.output) + count)[len(row.output) :]
        found.append(Proposal([rng.randrange(V) if rng.random() < 0.2 else i for i in truth]))
    return found


DRAFTERS: dict[str, Drafter] = {
    "lookup": from_lookup,
    "mostly right": mostly_right,
    "mostly wrong": lambda rows: [Proposal([(sum(row.output) + 5) % V] * 3) for row in rows],
    "none": lambda rows: [Proposal() for _ in rows],
    "coupled": lambda rows: DraftModel(small(rows), coupled=True).propose(rows, [3] * len(rows)),
}

SETTINGS: dict[str, Sampling] = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=1.1, seed=5),
    "filters": Sampling(temperature=0.9, top_k=9, top_p=0.9, min_p=0.01, seed=6),
    "bias": Sampling(logit_bias={3: 2.0}, banned=(5, 6), seed=7),
    "penalties": Sampling(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, seed=8),
    "greedy penalties": Sampling(temperature=0.0, repetition_penalty=1.3, no_repeat_ngram=2),
    "ngrams": Sampling(no_repeat_ngram=2, seed=9),
    "late end": Sampling(min_tokens=9, seed=10),
    "forced": Sampling(forced=(4, 4, 2), seed=11),
}


def small(rows: Sequence[Row], salt: int = 0) -> Callable[[Sequence[int], Sequence[Sequence[int]]], Tensor]:
    """A draft model that resembles the model: it does not see beyond the last two ids."""

    def follow(places: Sequence[int], drafted: Sequence[Sequence[int]]) -> Tensor:
        lines = []
        for place, drafts in zip(places, drafted, strict=True):
            past = [*rows[place].prompt, *rows[place].output, *drafts]
            near = hash((salt, *past[-2:])) & 0xFFFFFFFF
            lines.append(2.0 * torch.randn(V, generator=torch.Generator().manual_seed(near)))
        return torch.stack(lines)

    return follow


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_certain_drafts_change_nothing(drafter: str) -> None:
    rows = [Row(s, [i + 1, i + 2, 3], ENDS) for i, s in enumerate(SETTINGS.values()) for _ in range(2)]
    rows += [Row(SETTINGS["sampled"], [1, 2, 3], ENDS, choice) for choice in range(3)]
    alone = [plain(Row(r.sampling, r.prompt, r.stop_ids, r.choice, r.seed), 24) for r in rows]
    tally = Tally()
    assert speculative(rows, 24, DRAFTERS[drafter], tally) == alone
    assert (tally.accepted > 0) == (drafter != "none")


def grammar_row(grammar: Grammar, sampling: Sampling) -> Row:
    pytest.importorskip("llguidance")
    vocabulary = Vocabulary([b"", *(bytes([96 + i]) for i in range(1, V))], [0])
    return Row(sampling, [1, 2], ENDS, constraint=Constraint.compile(vocabulary, grammar))


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_certain_drafts_keep_the_grammar(temperature: float) -> None:
    grammar = Regex("(abc|[d-f]{2,4}){2,6}")
    sampling = Sampling(temperature=temperature, seed=2, grammar=grammar)
    truth = plain(grammar_row(grammar, sampling), 40)
    assert truth[-1] == 0
    for name in ("mostly right", "mostly wrong", "lookup"):
        row = grammar_row(grammar, sampling)
        assert speculative([row], 40, DRAFTERS[name]) == [truth]
    row = grammar_row(grammar, sampling)
    assert speculate.fitting(row, [1, 2, 4, 4]) == [1, 2]
    assert speculate.fitting(row, [1, 2, 3, 4], room=3) == [1, 2]


@pytest.mark.parametrize("coupled", [False, True])
def test_a_draft_model_keeps_the_grammar(coupled: bool) -> None:
    grammar = Regex("(abc|[d-f]{2,4}){2,6}")
    for seed in range(20):
        row, free = grammar_row(grammar, Sampling(seed=seed, grammar=grammar)), Row(Sampling(seed=seed), [1, 2])
        for _ in range(4):
            held, loose = DraftModel(small([row, free]), coupled=coupled).propose([row, free], [5, 2])
            assert list(held.drafts) == speculate.fitting(row, held.drafts)
            assert (held.chances is None) == coupled
            assert len(loose.drafts) == 2
            lines = [logits_after([*row.prompt, *row.output, *held.drafts[:i]]) for i in range(len(held.drafts) + 1)]
            (verdict,) = verify([Case(row, held)], torch.stack(lines))
            assert verdict.error is None
            if speculate.ended(row, row.output[-1]):
                break
        assert row.constraint is not None
        assert not row.constraint.fault


def joint(drawn: Sequence[Sequence[int]], sampling: Sampling, prompt: list[int]) -> tuple[float, float]:
    """Chi-square of the first two tokens of every output against the model's own distribution of pairs."""

    def chances(past: list[int]) -> Tensor:
        row = Row(sampling, prompt, output=past[len(prompt) :])
        return speculate.distribution(Sampler([row], V).process(logits_after(past)[None]), row)[0]

    first = chances(prompt)
    stated = torch.cat([first[i] * chances([*prompt, i]) for i in range(V)])
    return statistic(torch.tensor([a * V + b for a, b, *_ in drawn]), stated)


def drawn_pairs(sampling: Sampling, count: int) -> list[list[int]]:
    prompt = [1, 2]
    rows = [Row(sampling, prompt, seed=seed) for seed in range(count)]

    def drafter(live: Sequence[Row]) -> list[Proposal]:
        return DraftModel(small(live)).propose(live, [2] * len(live))

    return speculative(rows, 2, drafter)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "filters", "penalties"])
def test_drawn_drafts_leave_the_distribution(name: str) -> None:
    sampling = {
        "plain": Sampling(),
        "filters": Sampling(temperature=1.4, top_k=12, top_p=0.95),
        "penalties": Sampling(presence_penalty=0.7, logit_bias={4: 1.0}),
    }[name]
    value, bound = joint(drawn_pairs(sampling, 5000), sampling, [1, 2])
    assert value < bound


FAULTS = ["accepted with p", "made up for by p", "one number for both"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_sees_a_fault_in_rejection(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "accepted with p":
        monkeypatch.setattr(speculate, "accepts", lambda number, p, _q: number < p)
    elif fault == "made up for by p":
        monkeypatch.setattr(speculate, "residual", lambda p, _q: p)
    else:
        monkeypatch.setattr(speculate, "ACCEPTING", speculate.DRAFTING)
    value, bound = joint(drawn_pairs(Sampling(), 5000), Sampling(), [1, 2])
    assert value > bound


def test_the_law_sees_a_place_judged_after_the_wrong_past(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "historic", lambda _row: False)
    rows = [Row(SETTINGS["greedy penalties"], [i, 2, 3], ENDS) for i in range(1, 6)]
    alone = [plain(Row(r.sampling, r.prompt, r.stop_ids), 24) for r in rows]
    assert speculative(rows, 24, mostly_right) != alone


def test_a_request_does_not_notice_its_mates() -> None:
    def drafter(live: Sequence[Row]) -> list[Proposal]:
        return DraftModel(small(live)).propose(live, [1 + row.prompt[0] % 3 for row in live])

    def rows() -> list[Row]:
        return [Row(s, [i + 1, 2], ENDS, seed=i) for i, s in enumerate(SETTINGS.values())]

    together = speculative(rows(), 16, drafter)
    assert together == [speculative([row], 16, drafter)[0] for row in rows()]


def test_nothing_follows_the_end() -> None:
    row = Row(Sampling(temperature=0.0), [1], ENDS)
    logits = torch.zeros(4, V)
    logits[0, 7] = logits[1, 0] = logits[2, 9] = logits[3, 9] = 1.0
    (verdict,) = verify([Case(row, Proposal([7, 0, 9]))], logits)
    assert verdict == Verdict([7, 0], 2, 2)
    assert row.output == [7, 0]


def test_logits_that_are_no_numbers_are_said_and_touch_no_neighbour() -> None:
    settings = [Sampling(seed=1), Sampling(presence_penalty=1.0, seed=1)]
    rows = [Row(s, [1]) for s in settings for _ in range(2)]
    logits = torch.zeros(4, 2, V)
    logits[::2, 1] = torch.nan
    drafts = [plain_choice(row, logits[1, 0]) for row in rows]
    verdicts = verify([Case(row, Proposal([i])) for row, i in zip(rows, drafts, strict=True)], logits.flatten(0, 1))
    for broken, whole in (verdicts[:2], verdicts[2:]):
        assert "not numbers" in str(broken.error)
        assert broken.tokens == whole.tokens[:1]
        assert whole.error is None
        assert len(whole.tokens) == 2


def plain_choice(row: Row, logits: Tensor) -> int:
    return int(Sampler([row], V).choose(logits[None]))


# ------------------------------------------------------------------------------------------------------ what it brings

PUBLISHED = [(0.6, 2, 1.960, 1.531), (0.7, 3, 2.533, 1.579), (0.8, 2, 2.440, 1.230), (0.8, 5, 3.689, 1.626),
             (0.9, 2, 2.710, 1.107), (0.9, 10, 6.862, 1.603)]  # fmt: skip


@pytest.mark.parametrize(("alpha", "gamma", "tokens", "work"), PUBLISHED)
def test_published_numbers(alpha: float, gamma: int, tokens: float, work: float) -> None:
    assert expected(alpha, gamma) == pytest.approx(tokens, abs=5e-4)
    assert operations(alpha, gamma) == pytest.approx(work, abs=6e-4)


@pytest.mark.parametrize("alpha", [0.7, 0.8])
def test_measured_tokens_of_a_pass_are_the_formulas(alpha: float) -> None:
    rng, gamma, tally = random.Random(3), 4, Tally()
    row = Row(Sampling(temperature=0.0), [1])
    for _ in range(3000):
        truth = [rng.randrange(1, V) for _ in range(gamma + 1)]
        logits = torch.nn.functional.one_hot(torch.tensor(truth), V).float()
        drafts = [i if rng.random() < alpha else (i + 1) % V for i in truth[:gamma]]
        tally.note(Proposal(drafts), verify([Case(row, Proposal(drafts))], logits)[0])
    assert tally.alpha == pytest.approx(alpha, abs=0.015)
    assert tally.per_pass == pytest.approx(expected(alpha, gamma), rel=0.03)
    assert tally.tokens == len(row.output)


def paced(alpha: float, cost: float, passes: int = 400, turn: float | None = None) -> float:
    """How much faster writing gets with a pace, when drafts are right with chance alpha (from half on: `turn`)."""
    rng, pace, spent, written = random.Random(5), Pace(cost=cost), 0.0, 0
    for number in range(passes):
        count = pace.next()
        chance = alpha if turn is None or number < passes // 2 else turn
        accepted = next((i for i in range(count) if rng.random() >= chance), count)
        spent += 1 + cost * count
        written += accepted + 1
        pace.note(Verdict([0] * (accepted + 1), accepted, min(accepted + 1, count)))
    return written / spent


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.3])
def test_a_drafter_that_is_always_wrong_costs_little(cost: float) -> None:
    assert paced(0.0, cost) > 0.95
    assert paced(0.0, cost, passes=60) > 0.9


@pytest.mark.parametrize("cost", [0.02, 0.1])
@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9, 1.0])
def test_the_pace_finds_a_good_length(alpha: float, cost: float) -> None:
    best = max(speedup(alpha, gamma, cost) for gamma in range(9))
    assert paced(alpha, cost) > 0.9 * best
    assert paced(0.0, cost, 800, turn=alpha) > 1.0  # and comes back when drafts become right


def test_copying_is_fast_and_writing_is_not_slowed() -> None:
    rng = random.Random(1)
    passage = [rng.randrange(1, V) for _ in range(60)]

    def written(truth: list[int]) -> Copying:
        row = Row(Sampling(temperature=0.0), [*passage, 1])
        copying = Copying(row)
        while len(row.output) < len(truth):
            proposal = copying.propose(len(truth) - len(row.output))
            ahead = truth[len(row.output) :][: len(proposal.drafts) + 1]
            logits = torch.nn.functional.one_hot(torch.tensor(ahead), V).float()
            copying.note(proposal, verify([Case(row, proposal)], logits)[0])
        assert row.output == truth
        return copying

    copied = written([*passage, *passage, *passage])
    assert copied.tally.per_pass > 4
    fresh = written([rng.randrange(1, V) for _ in range(180)])
    assert fresh.tally.passes + 0.05 * fresh.tally.proposed < 1.05 * fresh.tally.tokens


# -------------------------------------------------------------------------------------------------------- prompt lookup


def by_search(ids: list[int], count: int, longest: int, shortest: int) -> list[int]:
    """The longest ending that was there before, the latest place among equals, by looking at all of it."""
    for length in range(longest, shortest - 1, -1):
        for place in range(len(ids) - 1, length - 1, -1):
            if length < len(ids) and ids[place - length : place] == ids[-length:]:
                found: list[int] = []
                while len(found) < count:
                    found.append([*ids, *found][place + len(found)])
                return found
    return []


@pytest.mark.parametrize(("longest", "shortest"), [(4, 1), (5, 2), (3, 3)])
def test_lookup_finds_what_a_search_finds(longest: int, shortest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.generate.lookup.CHAIN", 10**6)
    rng = random.Random(2)
    for _ in range(12):
        grown, ids = Lookup(longest=longest, shortest=shortest), []
        for _ in range(40):
            ids.append(rng.randrange(3))
            grown.extend(ids[-1:])
            assert grown.propose(5) == by_search(ids, 5, longest, shortest)


def test_lookup_does_not_search_the_past() -> None:
    ids = list(itertools.islice(itertools.cycle([1, 2, 1, 3]), 4000))
    looked = Lookup(ids, longest=3, shortest=1)
    looked.ids = Counted(looked.ids)
    assert looked.propose(4)
    assert looked.ids.reads < 200


class Counted(list[int]):
    """Counts how often it is read."""

    reads = 0

    def __getitem__(self, place: int | slice) -> int | list[int]:  # type: ignore[override]
        self.reads += 1
        return super().__getitem__(place)
