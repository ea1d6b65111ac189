"""Greedy and beam search equal `transformers.generate`, for every registered family, alone and in ragged batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.generate.loop import generate_ids
from openbook.generate.requests import Generation
from openbook.generate.sampling import Sampling
from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, ENCODER_DECODERS, Case, each, tokens

WRITERS = DECODERS + ENCODER_DECODERS
NEW = 12
BY_NAME = {case.name: case for case in WRITERS}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writers")


@cache
def ours_of(case: Case, root: Path) -> LanguageModel:
    return load(case.folder(root))


def prompts_of(case: Case, lengths: tuple[int, ...]) -> list[list[int]]:
    return [tokens(case, 1, length, seed=length)[0].tolist() for length in lengths]


def theirs(case: Case, prompts: list[list[int]], **settings: Any) -> Any:
    """Their output for prompts padded on the left (decoders) or the right (sources)."""
    model = case.reference()
    width = max(map(len, prompts))
    left = case.kind == "decoder"
    pads = [[0] * (width - len(p)) for p in prompts]
    ids = torch.tensor([[*pad, *p] if left else [*p, *pad] for p, pad in zip(prompts, pads, strict=True)])
    mask = torch.tensor(
        [
            [0] * len(pad) + [1] * len(p) if left else [1] * len(p) + [0] * len(pad)
            for p, pad in zip(prompts, pads, strict=True)
        ]
    )
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": NEW, **settings}
    if not left:  # their cache has as many layers as the encoder, which here are too few for the decoder
        settings["use_cache"] = False
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **settings)
    out.sequences = out.sequences[:, (width if left else 1) :]
    return out


def ours(case: Case, root: Path, prompts: list[list[int]], sampling: Sampling, **more: Any) -> list[Generation]:
    start = (0,) if case.kind == "encoder-decoder" else ()
    return generate_ids(ours_of(case, root), prompts, sampling, start=start, **more)


def cut(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Ids up to the first end id."""
    ends = [place for place, i in enumerate(ids) if i in eos]
    return ids[: ends[0] + 1] if ends else ids


# Step by step, the reference forgets the limits of Mamba 2's time steps.
@each([case for case in WRITERS if "time_step_limit" not in case.values])
def test_greedy(case: Case, root: Path) -> None:
    for prompts in (prompts_of(case, (5,)), prompts_of(case, (3, 11, 7))):
        if "mamba" in case.name:  # their Mamba reads padding on the left into its state
            reference = [theirs(case, [prompt]).sequences[0].tolist() for prompt in prompts]
        else:
            reference = theirs(case, prompts).sequences.tolist()
        got = ours(case, root, prompts, Sampling(max_tokens=NEW, temperature=0.0))
        assert [g.ids for g in got] == reference
        assert {g.finish for g in got} == {"length"}


@each(WRITERS)
def test_greedy_with_end_and_processors(case: Case, root: Path) -> None:
    prompts = prompts_of(case, (6,))
    free = theirs(case, prompts).sequences[0].tolist()
    eos = (free[3], free[6])
    settings: dict[str, Any] = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 5}
    sampling = Sampling(max_tokens=NEW, temperature=0.0, repetition_penalty=1.4, no_repeat_ngram=2, min_tokens=5)
    for theirs_, ours_ in (({}, Sampling(max_tokens=NEW, temperature=0.0)), (settings, sampling)):
        reference = theirs(case, prompts, eos_token_id=list(eos), **theirs_).sequences[0].tolist()
        got = ours(case, root, prompts, ours_, eos=eos)[0]
        assert got.ids == cut(reference, eos)
        assert got.finish == ("stop" if got.ids[-1] in eos else "length")


BEAMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "longer is better": ({"length_penalty": 2.0}, {"length_penalty": 2.0}),
    "shorter is better": ({"length_penalty": -1.0}, {"length_penalty": -1.0}),
    "no penalty, early": ({"length_penalty": 0.0, "early_stopping": True},) * 2,
    "never": ({"early_stopping": "never"},) * 2,
    "never, short": ({"early_stopping": "never", "length_penalty": -0.5},) * 2,
    "processed": (
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram": 2, "min_tokens": 3},
    ),
}
SEARCHED = [BY_NAME[name] for name in ("llama", "gpt2", "gemma2", "mamba", "t5", "mixtral")]


def search(case: Case, root: Path, prompts: list[list[int]], width: int, how: str, ends: int) -> None:
    their_settings, our_settings = BEAMS[how]
    free = theirs(case, prompts[:1]).sequences[0].tolist()
    eos = tuple(dict.fromkeys([free[2], free[5], 7, 9, 11]))[:ends] if ends else ()
    sampling = Sampling(max_tokens=NEW, beams=width, n=width, **our_settings)
    out = theirs(
        case, prompts, num_beams=width, num_return_sequences=width, eos_token_id=list(eos) or None, **their_settings
    )
    got = ours(case, root, prompts, sampling, eos=eos)
    assert [g.ids for g in got] == [cut(row, eos) for row in out.sequences.tolist()]
    scores = torch.tensor([g.score for g in got])
    assert (scores - out.sequences_scores).abs().max() < 2e-5 * max(1.0, float(scores.abs().max()))
    assert [g.choice for g in got] == list(range(width)) * len(prompts)


@pytest.mark.parametrize("how", BEAMS)
@each(SEARCHED)
def test_beams(case: Case, root: Path, how: str) -> None:
    if "min_new_tokens" in BEAMS[how][0]:
        search(case, root, prompts_of(case, (6,)), 3, how, 2)
        return
    for width, ends in ((2, 0), (3, 1), (4, 3)):
        search(case, root, prompts_of(case, (6,)), width, how, ends)


@pytest.mark.parametrize("how", ["plain", "never", "no penalty, early", "longer is better"])
@pytest.mark.parametrize("case", [c for c in SEARCHED if c.name != "mamba"], ids=lambda case: case.name)
def test_beams_of_a_ragged_batch(case: Case, root: Path, how: str) -> None:
    search(case, root, prompts_of(case, (4, 9, 6)), 3, how, 2)


def test_beams_without_a_cache_and_in_chunks(root: Path) -> None:
    for name in ("llama", "t5", "mamba"):
        case = BY_NAME[name]
        prompts = prompts_of(case, (4, 9))
        sampling = Sampling(max_tokens=8, beams=3, n=2)
        plain = ours(case, root, prompts, sampling)
        for more in ({"cached": False}, {"chunk": 3}, {"batch": 3}):
            other = ours(case, root, prompts, sampling, **more)
            assert [g.ids for g in other] == [g.ids for g in plain]
            assert [g.score for g in other] == pytest.approx([g.score for g in plain], abs=1e-5)
