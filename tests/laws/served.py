"""How the laws of serving ask an engine: one request as a value, and what it must give."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from openbook.generate.engine import Engine
from openbook.generate.job import Job
from openbook.generate.loop import generate_ids
from openbook.generate.output import TokenBytes
from openbook.generate.plan import Plan
from openbook.generate.requests import Generation
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from openbook.models.load import load
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from tests import families
from tests.nn import recurrent

CASES = {case.name: case for case in families.DECODERS + families.ENCODER_DECODERS}
QUICK = ("lstm", "bahdanau", "luong-general-fed")  # of the recurrent specs; the others are left to the whole run
PAIRS = {case.name for case in families.ENCODER_DECODERS} | set(recurrent.PAIRS)
_CORE = {case.name: case.core for case in CASES.values()} | {name: name in QUICK for name in recurrent.ALL}
MARKED = [pytest.param(name, id=name, marks=() if core else (pytest.mark.slow,)) for name, core in _CORE.items()]
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
def model_of(name: str, form: str = "fp32") -> LanguageModel:
    """The family's random model, as its folder loads, in a form for serving. Those of `MADE` are made of a spec."""
    if name in MADE:
        make, seed = MADE[name]
        return serve_form(_random(make(), seed), form)
    if name in recurrent.ALL:
        return serve_form(recurrent.random(recurrent.ALL[name], 5), form)
    with tempfile.TemporaryDirectory() as root:
        return serve_form(load(CASES[name].folder(Path(root))), form)


@cache
def draft_of(vocab: int) -> LanguageModel:
    """A small decoder that drafts for models of this vocabulary."""
    return serve_form(_random(_stack(vocab, [[_heads(None), MLP]]), 9), "fp32")


MLP = spec.MLP(hidden=48)


def _heads(window: int | None) -> spec.Attention:
    return spec.Attention(
        heads=4, kv_heads=2, head_dim=8, rope=spec.Rope(dim=8), pattern=spec.Pattern(causal=True, window=window)
    )


def _stack(vocab: int, layers: list[list[spec.Layer]]) -> spec.Model:
    blocks = tuple(spec.Block(branches=tuple(spec.Branch(layer=x, norm=spec.Norm()) for x in b)) for b in layers)
    return spec.Model(
        embed=spec.Embed(vocab=vocab, dim=32),
        stack=spec.Stack(dim=32, blocks=blocks, final_norm=spec.Norm()),
        heads=(spec.Language(),),
        context=512,
    )


def _hybrid() -> spec.Model:
    selective = spec.Selective(inner=48, state=8, kernel=4, rank=3)
    return _stack(131, [[selective], [_heads(6), MLP], [_heads(None), MLP]])


def _shared() -> spec.Model:
    """Blocks that run again: each run keeps a state of its own."""
    model = _hybrid()
    return replace(model, stack=replace(model.stack, order=(0, 1, 2, 1, 0, 2, 2)))


def _states() -> spec.Model:
    dual = spec.StateSpaceDual(heads=6, head_dim=7, groups=2, state=5, kernel=3, norm=spec.Norm())
    delta = spec.GatedDelta(heads=2, value_heads=4, key_dim=6, value_dim=9, kernel=3, norm=spec.Norm())
    return _stack(131, [[spec.Structured(state=10), MLP], [dual], [_heads(6), MLP], [delta, MLP]])


# The seed: one with which greedy output repeats itself.
MADE = {"hybrid": (_hybrid, 5), "shared": (_shared, 8), "states": (_states, 5)}


def _random(of: spec.Model, seed: int) -> LanguageModel:
    """A model of a spec, its numbers such that every part shows."""
    model = build(of).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.normal_(1.0 if "norm" in key and "weight" in key else 0.0, spread, generator=generator)
    return model


def prompts_of(
    name: str, count: int, lengths: Sequence[int] = (9, 17, 3, 24, 12, 30), seed: int = 0
) -> list[list[int]]:
    """Random prompts of uneven lengths."""
    vocab = model_of(name).spec.reads.vocab
    most = (model_of(name).spec.context or 1000) - 13
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(lengths[i % len(lengths)], most) for i in range(count)]
    return [torch.randint(3, vocab, (size,), generator=generator).tolist() for size in sizes]


def engine_of(
    name: str,
    *,
    memory: int = MEMORY,
    form: str = "fp32",
    draft: bool = False,
    token_bytes: TokenBytes | None = None,
    **settings: object,
) -> Engine:
    """An engine for the family's model, with small pages so that there are many."""
    model = model_of(name, form)
    made = Engine(
        model,
        Settings(memory=memory, **{"page": 32, **settings}),
        start=START[model.spec.source is not None],
        eos=(2,),
        draft=draft_of(model.spec.embed.vocab) if draft else None,
        token_bytes=token_bytes,
    )
    if draft and made.speculator is not None:
        made.speculator.drafter.cost = 0.05  # the truth, of models as small as these, would be: do not draft
    return made


def preempt(engine: Engine, job: Job) -> int:
    """Makes all running sequences of a request wait again, as if others had taken their pages; how many."""
    plan = Plan()
    for sequence in job.sequences.values():
        if sequence.state == "running":
            engine.scheduler._preempt(plan, sequence)
            engine.reader.sourced.pop(sequence, None)
    return len(plan.preempted)


def emptied(engine: Engine) -> None:
    """All is accounted for, and when the prefix cache is forgotten nothing is held."""
    assert engine.idle
    assert engine.scheduler.idle
    engine.scheduler.check()
    engine.scheduler.pool.forget_all()
    assert engine.scheduler.pool.bytes == 0


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
