"""The loop: stops, limits, streaming, samples, log-probabilities, cancelling, bad prompts; and law 3 at its level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import InputError, OpenbookError, Refusal
from openbook.generate.loop import generate_ids, stream_ids
from openbook.generate.requests import Generation, Token
from openbook.generate.sampling import Sampling
from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, ENCODER_DECODERS, ENCODERS, tokens

CASES = {case.name: case for case in DECODERS + ENCODER_DECODERS + ENCODERS}
GREEDY = Sampling(max_tokens=10, temperature=0.0)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    root = tmp_path_factory.mktemp("loop")
    return lambda name: load(CASES[name].folder(root))


@pytest.fixture(scope="module")
def model(make: Callable[[str], LanguageModel]) -> LanguageModel:
    return make("llama")


def prompts(*lengths: int) -> list[list[int]]:
    """Ids that every family here has."""
    return [tokens(CASES["t5"], 1, length, seed=length)[0].tolist() for length in lengths]


def letters(token: int) -> bytes:
    """Bytes of an id: three of them, so that stops fall across borders."""
    return bytes([97 + token % 26, 97 + token // 26, 45])


def text(generation: Generation) -> bytes:
    whole = b"".join(map(letters, generation.ids))
    return whole[: len(whole) - generation.excess]


MIXED = [
    Sampling(max_tokens=9, seed=1),
    Sampling(max_tokens=4, temperature=0.0),
    Sampling(max_tokens=12, seed=3, n=3, temperature=1.3, top_k=20),
    Sampling(max_tokens=7, seed=4, repetition_penalty=1.2, no_repeat_ngram=2, logprobs=2),
    Sampling(max_tokens=6, beams=3, n=2),
    Sampling(max_tokens=0),
    Sampling(max_tokens=8, seed=5, top_p=0.8, forced=(9, 8), stop=("-",), min_tokens=3),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba", "gemma2", "llama-dynamic", "t5"])
def test_a_request_gets_the_same_in_any_company(make: Callable[[str], LanguageModel], name: str) -> None:
    model = make(name)
    start = {"start": (0,)} if name == "t5" else {}
    texts = prompts(5, 9, 4, 12, 7, 3, 6)

    def ids(many: list[list[int]], samplings: list[Sampling], **more: Any) -> list[list[int]]:
        found = generate_ids(model, many, samplings, token_bytes=letters, **start, **more)
        assert [g.prompt for g in found] == sorted(g.prompt for g in found)
        return [g.ids for g in found]

    alone = [ids([prompt], [sampling]) for prompt, sampling in zip(texts, MIXED, strict=True)]
    flat = [one for group in alone for one in group]
    assert ids(texts, MIXED) == flat
    assert ids(texts, MIXED, cached=False) == flat
    assert ids(texts, MIXED, chunk=4) == flat
    assert ids(texts, MIXED, batch=3) == flat
    assert [len(group) for group in alone] == [1, 1, 3, 1, 2, 1, 1]
    assert len({tuple(one) for one in alone[2]}) > 1


def test_stop_ids_end_ids_and_minimum(model: LanguageModel) -> None:
    free = generate_ids(model, prompts(5), GREEDY)[0].ids
    third = free[2]
    first = free.index(third)
    for more, sampling in (
        ({"eos": (third,)}, GREEDY),
        ({}, Sampling(max_tokens=10, temperature=0.0, stop_ids=(third,))),
        ({"eos": (free[0],)}, Sampling(max_tokens=10, temperature=0.0, stop_ids=(third,), ignore_eos=True)),
    ):
        got = generate_ids(model, prompts(5), sampling, **more)[0]
        assert (got.ids, got.finish, got.stopped_by) == (free[: first + 1], "stop", third)
    ignoring = generate_ids(model, prompts(5), Sampling(max_tokens=10, temperature=0, ignore_eos=True), eos=(third,))[0]
    assert (ignoring.ids, ignoring.finish) == (free, "length")
    late = generate_ids(model, prompts(5), Sampling(max_tokens=10, temperature=0, min_tokens=6), eos=(third,))[0]
    assert third not in late.ids[:6]


def test_rows_stop_one_by_one(model: LanguageModel) -> None:
    texts = prompts(3, 8, 5, 6)
    free = [g.ids for g in generate_ids(model, texts, GREEDY)]
    eos = (free[0][1], free[2][4], free[3][0])
    got = generate_ids(model, texts, GREEDY, eos=eos)
    for one, whole in zip(got, free, strict=True):
        end = min((whole.index(e) for e in eos if e in whole), default=9)
        assert one.ids == whole[: end + 1]
        assert one.finish == ("stop" if one.ids[-1] in eos else "length")


def test_stop_strings_across_tokens(model: LanguageModel) -> None:
    free = generate_ids(model, prompts(5), GREEDY)[0].ids
    whole = b"".join(map(letters, free))
    stop = whole[7:13]  # from inside the third token into the fifth
    sampling = Sampling(max_tokens=10, temperature=0, stop=(stop, b"never"))
    got = generate_ids(model, prompts(5), sampling, token_bytes=letters)
    at = whole.find(stop)
    assert text(got[0]) == whole[:at]
    assert (got[0].finish, got[0].stopped_by) == ("stop", stop)
    assert got[0].ids == free[: -(-(at + len(stop)) // 3)]
    with pytest.raises(InputError, match="hand in `token_bytes`"):
        generate_ids(model, prompts(5), Sampling(stop="x"))


def test_streamed_is_whole(model: LanguageModel) -> None:
    texts = prompts(5, 9, 3)
    samplings = [Sampling(max_tokens=12, seed=i, n=2, logprobs=1, stop=("b-", "cc")) for i in range(3)]
    events: list[Token] = []
    whole = generate_ids(model, texts, samplings, eos=(5, 6), token_bytes=letters, on_token=events.append)
    results: list[Generation] = []
    again = list(
        stream_ids(model, texts, samplings, eos=(5, 6), token_bytes=letters, results=results)
    )  # fmt: skip
    assert again == events
    assert results == whole
    for one in whole:
        own = [e for e in events if (e.prompt, e.choice) == (one.prompt, one.choice)]
        assert [e.id for e in own] == one.ids
        assert [e.index for e in own] == list(range(len(own)))
        assert [e.logprob for e in own] == one.logprobs
        assert [e.finish for e in own] == [None] * (len(own) - 1) + [one.finish]
        shown = b"".join(map(letters, one.ids[:-1] if isinstance(one.stopped_by, int) else one.ids))
        assert b"".join(e.text for e in own) == shown[: len(shown) - one.excess]


def test_logprobs_are_the_teacher_forced_ones(make: Callable[[str], LanguageModel]) -> None:
    for name in ("llama", "mamba"):
        model = make(name)
        sampling = Sampling(max_tokens=6, seed=2, temperature=0.5, logit_bias={4: 3.0}, logprobs=3, prompt_logprobs=2)
        texts = prompts(7, 1, 5)
        whole = generate_ids(model, texts, sampling)
        for more in ({"chunk": 2}, {"cached": False}):
            other = generate_ids(model, texts, sampling, **more)
            assert [g.ids for g in other] == [g.ids for g in whole]
            for a, b in zip(other, whole, strict=True):
                assert a.prompt_logprobs is not None
                assert b.prompt_logprobs is not None
                for x, y in zip(a.prompt_logprobs[1:], b.prompt_logprobs[1:], strict=True):
                    assert x is not None
                    assert y is not None
                    assert x.logprob == pytest.approx(y.logprob, abs=1e-5)
        for prompt, one in zip(texts, whole, strict=True):
            with torch.no_grad():
                scores = model(torch.tensor([prompt + one.ids]))[0].log_softmax(-1)
            assert one.logprobs is not None
            assert one.prompt_logprobs is not None
            assert one.prompt_logprobs[0] is None
            assert len(one.prompt_logprobs) == len(prompt)
            found = one.prompt_logprobs[1:] + one.logprobs
            for place, logprob in enumerate(found):
                assert logprob is not None
                assert logprob.id == (prompt + one.ids)[place + 1]
                assert logprob.logprob == pytest.approx(float(scores[place, logprob.id]), abs=1e-5)
                count = 2 if place < len(prompt) - 1 else 3
                assert [i for i, _ in logprob.top] == scores[place].topk(count).indices.tolist()


def test_only_the_prompt_is_read(model: LanguageModel) -> None:
    got = generate_ids(model, prompts(5, 3), Sampling(max_tokens=0, prompt_logprobs=0))
    assert [(g.ids, g.finish, len(g.prompt_logprobs or ())) for g in got] == [([], "length", 5), ([], "length", 3)]
    assert generate_ids(model, prompts(4), Sampling(max_tokens=0))[0].ids == []
    assert generate_ids(model, [], GREEDY) == []


def test_cancel_keeps_what_there_is(model: LanguageModel) -> None:
    for sampling in (GREEDY, Sampling(max_tokens=10, beams=2)):
        asked = iter([False, False, False, True, True, True, True])
        got = generate_ids(model, prompts(5, 3), sampling, cancel=lambda: next(asked))  # noqa: B023
        assert [g.finish for g in got] == ["cancelled"] * 2
        assert all(len(g.ids) == 3 for g in got)
    stream = stream_ids(model, prompts(5), GREEDY)
    next(stream)
    stream.close()


def test_the_context_is_never_cut_silently(make: Callable[[str], LanguageModel]) -> None:
    for name in ("llama", "gpt2"):
        model = make(name)
        with pytest.raises(InputError, match="Prompt 1 has 70 tokens and the context of this model holds 64"):
            generate_ids(model, prompts(5, 70), GREEDY)
        with pytest.raises(InputError, match="Prompt 0 fills the context of 64"):
            generate_ids(model, prompts(64), GREEDY)
        got = generate_ids(model, prompts(61, 5), Sampling(max_tokens=100, temperature=0.0))
        assert [(len(g.ids), g.finish) for g in got] == [(3, "length"), (59, "length")]
        assert got[1].ids == generate_ids(model, prompts(5), Sampling(max_tokens=100, temperature=0.0))[0].ids
        with pytest.raises(InputError, match="context of this model holds 8"):
            generate_ids(model, prompts(9), GREEDY, context=8)


def test_bad_prompts_and_models_are_said(make: Callable[[str], LanguageModel]) -> None:
    model = make("llama")
    for wrong, message in (
        ([[]], "Prompt 0 is empty"),
        ([[5], [1, 131]], r"prompt 1 holds 131 at place 1: ids of this model are 0 to 130"),
        ([[-1]], "prompt 0 holds -1"),
        ([[1.0]], "prompt 0 holds 1.0"),
    ):
        with pytest.raises(InputError, match=message):
            generate_ids(model, wrong, GREEDY)
    with pytest.raises(InputError, match="2 prompts and 1 samplings"):
        generate_ids(model, prompts(3, 4), [GREEDY])
    with pytest.raises(InputError, match="`banned` names id 131"):
        stream_ids(model, prompts(3), Sampling(banned=(131,)))  # at once, not at the first token
    with pytest.raises(InputError, match="`batch` and `chunk`"):
        generate_ids(model, prompts(3), GREEDY, chunk=0)
    with pytest.raises(InputError, match="`beams` must be at most the vocabulary"):
        generate_ids(model, prompts(3), Sampling(beams=200))
    with pytest.raises(InputError, match="`start` is for encoder-decoders"):
        generate_ids(model, prompts(3), GREEDY, start=(0,))
    with pytest.raises(InputError, match="give `start`"):
        generate_ids(make("t5"), prompts(3), GREEDY)
    with pytest.raises(InputError, match="`prompt_logprobs`"):
        generate_ids(make("t5"), prompts(3), Sampling(prompt_logprobs=1), start=(0,))
    with pytest.raises(Refusal, match="sees both ways"):
        generate_ids(make("bert"), prompts(3), GREEDY)
    with pytest.raises(InputError, match=r"No id is left.*no_repeat_ngram=1"):
        generate_ids(model, prompts(3), Sampling(no_repeat_ngram=1, banned=tuple(range(3, 131))))


def test_a_damaged_model_is_said(tmp_path: Path) -> None:
    model = load(CASES["gpt2"].folder(tmp_path))
    with torch.no_grad():
        model.embed.tokens.weight.fill_(torch.nan)
    for sampling in (GREEDY, Sampling(seed=1), Sampling(beams=2)):
        with pytest.raises(OpenbookError, match="not numbers"):
            generate_ids(model, prompts(3), sampling)


def test_a_model_in_training_stays_in_training(tmp_path: Path) -> None:
    model = load(CASES["llama"].folder(tmp_path)).train()
    before = torch.random.get_rng_state()
    generate_ids(model, prompts(5, 60), Sampling(max_tokens=3))
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)  # nor does it draw from the global generator
    model(torch.tensor(prompts(30))).sum().backward()


def test_bfloat16_and_long_prompts_run(tmp_path: Path) -> None:
    model = load(CASES["gemma2"].folder(tmp_path), dtype="bfloat16")
    got = generate_ids(model, prompts(40, 3), Sampling(max_tokens=20, seed=1, top_p=0.9, logprobs=1), context=None)
    assert [len(g.ids) for g in got] == [20, 20]


def test_prompts_may_be_arrays(model: LanguageModel) -> None:
    plain = generate_ids(model, prompts(5, 5), GREEDY)
    assert generate_ids(model, torch.tensor(prompts(5, 5)), GREEDY) == plain
    assert generate_ids(model, torch.tensor(prompts(5, 5)).numpy(), GREEDY) == plain
    for wrong in ([[True]], [["5"]], [[None]], torch.tensor([[0.5]])):
        with pytest.raises(InputError, match="prompt 0 holds"):
            generate_ids(model, wrong, GREEDY)
