"""Each processor equals the one of `transformers`, ties and edges included; the whole chain in the same order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from openbook.generate import processors
from openbook.generate.draw import choose, filtered, narrow, widths
from openbook.generate.sampler import Row, Sampler
from openbook.generate.sampling import Sampling

theirs = pytest.importorskip("transformers.generation.logits_process")

ROWS, VOCAB = 6, 97


def logits(kind: str, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    made = torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    match kind:
        case "plain":
            return made
        case "ties":  # a few levels only
            return made.round()
        case "flat":
            return torch.zeros_like(made)
        case "holes":  # most ids impossible already
            return made.masked_fill(made < 2, -math.inf).index_fill(1, torch.tensor([5]), 1.0)
        case "one":
            return torch.full_like(made, -math.inf).index_fill(1, torch.tensor([7]), -3.0)
        case "sharp":
            return made * 30
    raise AssertionError(kind)


KINDS = ["plain", "ties", "flat", "holes", "one", "sharp"]
IDS = torch.randint(0, VOCAB, (ROWS, 12), generator=torch.Generator().manual_seed(1))


def same(ours: Tensor, other: Tensor) -> None:
    assert torch.equal(ours, other), (ours - other).abs().nan_to_num().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 10, VOCAB, VOCAB + 50])
def test_top_k(kind: str, k: int) -> None:
    x = logits(kind)
    same(processors.top_k(x, k), theirs.TopKLogitsWarper(k)(IDS, x.clone()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p(kind: str, p: float) -> None:
    x = logits(kind)
    kept = processors.top_p(x, p)
    reference = theirs.TopPLogitsWarper(p)(IDS, x.clone())
    if kind in ("ties", "flat"):  # which of equals it keeps depends on an unstable sort, that is, on the machine
        same(kept.sort(dim=1).values, reference.sort(dim=1).values)
        for row, k in zip(x, kept, strict=True):  # ours keeps the higher ids
            edge = (row == k[k > -math.inf].min()).nonzero().flatten()
            alive = (k > -math.inf)[edge]
            assert torch.equal(alive, alive.sort().values)
    else:
        same(kept, reference)
    assert (kept > -math.inf).any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 1.0])
def test_min_p(kind: str, p: float) -> None:
    x = logits(kind)
    same(processors.min_p(x, p), theirs.MinPLogitsWarper(p)(IDS, x.clone()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mass", [0.01, 0.2, 0.9, 0.999])
def test_typical(kind: str, mass: float) -> None:
    x = logits(kind)
    same(processors.typical(x, mass), theirs.TypicalLogitsWarper(mass)(IDS, x.clone()))  # ties at the edge all stay


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.3, 1.7])
def test_temperature_and_repetition(kind: str, value: float) -> None:
    x = logits(kind)
    same(processors.temperature(x, value), theirs.TemperatureLogitsWarper(value)(IDS, x.clone()))
    seen = torch.zeros(ROWS, VOCAB, dtype=torch.bool).scatter(1, IDS, True)
    same(processors.repetition_penalty(x, seen, value), theirs.RepetitionPenaltyLogitsProcessor(value)(IDS, x.clone()))


@pytest.mark.parametrize("n", [1, 2, 3, 12, 13])
def test_no_repeat_ngram(n: int) -> None:
    x = logits("plain")
    ids = IDS % 3
    banned = []
    for row in ids.tolist():
        seen = processors.Ngrams(n)
        seen.extend(row)
        banned.append(seen.repeats())
    same(processors.ban_each(x, banned), theirs.NoRepeatNGramLogitsProcessor(n)(ids, x.clone()))


def test_bias_ban_and_force() -> None:
    x = logits("plain")
    bias = {3: 2.0, 9: -math.inf, 0: -1.5}
    vector = torch.zeros(VOCAB)
    vector[list(bias)] = torch.tensor(list(bias.values()))
    same(
        processors.add_bias(x, vector),
        theirs.SequenceBiasLogitsProcessor({(i,): b for i, b in bias.items()})(IDS, x.clone()),
    )
    same(processors.ban(x, torch.tensor([4, 6])), theirs.SuppressTokensLogitsProcessor([4, 6])(IDS, x.clone()))
    forced = processors.force(x, [5, None, 7, None, 5, 0])
    same(forced[0:1], theirs.ForcedBOSTokenLogitsProcessor(5)(IDS[:1, :1], x[:1].clone()))
    same(forced[1], x[1])
    assert forced[2].argmax() == 7


def test_output_penalties_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    counts = torch.tensor([[0.0, 1.0, 3.0, 0.0]])
    ours = processors.output_penalties(x, counts, frequency=0.5, presence=0.25)
    assert torch.allclose(ours, torch.tensor([[1.0, 2 - 0.5 - 0.25, 3 - 1.5 - 0.25, 4.0]]))


def test_functions_leave_their_argument_alone() -> None:
    x = logits("plain")
    before = x.clone()
    seen = x > 0
    processors.add_bias(x, torch.ones(VOCAB))
    processors.repetition_penalty(x, seen, 2.0)
    processors.output_penalties(x, seen.float(), 1.0, 1.0)
    processors.ban(x, torch.tensor([1]))
    processors.ban_each(x, [[1]] * ROWS)
    processors.force(x, [1] * ROWS)
    filtered(x, Sampling(top_k=5, top_p=0.5, min_p=0.1, typical_p=0.5))
    same(x, before)


CHAIN = Sampling(
    logit_bias={3: 2.0, 8: -1.0}, repetition_penalty=1.3, no_repeat_ngram=2, banned=(11, 12), min_tokens=3,
    temperature=0.7, top_k=40, top_p=0.95, min_p=0.02, typical_p=0.9, max_tokens=9,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "sharp"])
def test_the_whole_chain_is_theirs(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_layer=1, n_head=1, n_embd=4, n_positions=64)
    )
    settings = transformers.GenerationConfig(
        do_sample=True, sequence_bias=[[[3], 2.0], [[8], -1.0]], repetition_penalty=1.3, no_repeat_ngram_size=2,
        bad_words_ids=[[11], [12]], min_new_tokens=3, temperature=0.7, top_k=40, top_p=0.95, min_p=0.02, typical_p=0.9,
    )  # fmt: skip
    settings._eos_token_tensor = torch.tensor([2])
    chain = model._get_logits_processor(settings, input_ids_seq_length=12, device="cpu")
    x = logits(kind)
    rows = [Row(CHAIN, ids, frozenset({2})) for ids in IDS.tolist()]
    ours = Sampler(rows, VOCAB).process(x)
    ours = filtered(processors.temperature(ours, CHAIN.temperature), CHAIN)
    same(ours, chain(IDS, x.clone()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{"top_k": 20}, {"top_k": 3, "top_p": 0.7}, {"top_p": 0.9}, {"top_p": 0.3, "min_p": 0.1}, {"min_p": 0.05},
     {"top_p": 0.0}, {"top_k": 50, "typical_p": 0.8}, {"min_p": 1.0}],
)  # fmt: skip
def test_the_narrow_path_draws_what_the_long_way_draws(kind: str, settings: dict[str, float]) -> None:
    x = logits(kind, vocab=4000, seed=3)
    sampling = Sampling(**settings)
    numbers = [0.0, 0.2, 0.5, 0.77, 0.95, 0.999999]
    few = narrow(x, sampling, widths(sampling, 4000)[0])
    whole = filtered(x, sampling)
    inside = torch.full_like(whole, -math.inf).scatter(1, few.ids, filtered(few.logits, sampling, few.outside))
    for row in few.exact.nonzero().flatten().tolist():
        same(inside[row], whole[row])
    drawn = choose(x, sampling, numbers)
    assert whole.gather(1, drawn[:, None]).isfinite().all()
    if kind == "plain":
        assert few.exact.any()
