"""How the laws of serving ask an engine: one request as a value, and what it must give."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from openbook.generate.engine import Engine, Settings
from openbook.generate.loop import generate_ids
from openbook.generate.requests import Generation
from openbook.generate.sampling import Sampling
from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests import families

CASES = {case.name: case for case in families.DECODERS + families.ENCODER_DECODERS}
NAMES = list(CASES)
MEMORY = 8 << 20
START = {True: (0,), False: ()}  # what an encoder-decoder's output begins with


@dataclass(frozen=True)
class Said:
    """What a request got: ids and log-probabilities, to the last bit."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, generation: Generation) -> Said:
        assert generation.finish in ("length", "stop"), generation.error
        assert generation.logprobs is not None
        return cls(tuple(generation.ids), tuple(found.logprob for found in generation.logprobs))


@cache
def model_of(name: str) -> LanguageModel:
    """The family's random model, as its folder loads."""
    with tempfile.TemporaryDirectory() as root:
        return load(CASES[name].folder(Path(root)))


def prompts_of(
    name: str, count: int, lengths: Sequence[int] = (9, 17, 3, 24, 12, 30), seed: int = 0
) -> list[list[int]]:
    """Random prompts of uneven lengths."""
    vocab = CASES[name].values["vocab_size"]
    most = (model_of(name).spec.context or 1000) - 13
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(lengths[i % len(lengths)], most) for i in range(count)]
    return [torch.randint(3, vocab, (size,), generator=generator).tolist() for size in sizes]


def engine_of(name: str, *, memory: int = MEMORY, **settings: object) -> Engine:
    """An engine for the family's model, with small pages so that there are many."""
    model = model_of(name)
    two_sided = model.spec.source is not None
    return Engine(model, Settings(memory=memory, **{"page": 32, **settings}), start=START[two_sided])


def greedy(tokens: int = 12) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0, logprobs=0, ignore_eos=True)


def drawn(tokens: int = 12, seed: int = 7, n: int = 1) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.9, top_p=0.95, seed=seed, logprobs=0, ignore_eos=True, n=n)


def said(engine: Engine, prompts: list[list[int]], sampling: Sampling | list[Sampling]) -> list[Said]:
    """What an engine says to prompts that come together; everything must come back to the pool."""
    found = [Said.of(generation) for generation in engine.generate(prompts, sampling)]
    engine.scheduler.check()
    assert engine.idle
    return found


def reference(name: str, prompts: list[list[int]], sampling: Sampling) -> list[Said]:
    """The slow loop: every token a pass over the whole row, each prompt alone."""
    model = model_of(name)
    start = START[model.spec.source is not None]
    return [
        Said.of(found)
        for p in prompts
        for found in generate_ids(model, [p], sampling, start=start, cached=False, batch=1)
    ]
