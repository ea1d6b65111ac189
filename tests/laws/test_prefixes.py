"""A prefix that is read both ways, and what follows it from left to right (Raffel et al. 2020, §3.2.1).

Against a definition written as a loop; packed == unpacked; cached == full; the engine, which reads in parts, refuses.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openbook.data.batch import IGNORED, Batch
from openbook.errors import InputError, Refusal
from openbook.generate import cache as caches
from openbook.generate.cache import Contiguous
from openbook.generate.engine import Engine
from openbook.generate.loop import generate_ids
from openbook.generate.sampling import Sampling
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.marks import mark
from openbook.nn.model import LanguageModel
from openbook.nn.plain import from_plain, to_plain
from openbook.nn.state import Dense
from openbook.train.objectives import Language

BOUND = 1e-5


def close(ours: Tensor, theirs: Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


def model_of(window: int | None = None, relative: bool = False) -> LanguageModel:
    layer = spec.Attention(
        heads=4,
        kv_heads=2,
        head_dim=6,
        pattern=spec.Pattern(window=window, marked="prefix"),
        rope=None if relative else spec.Rope(dim=6),
        relative=relative,
    )
    branches = tuple(spec.Branch(layer=part, norm=spec.Norm()) for part in (layer, spec.MLP(hidden=30)))
    stack = spec.Stack(
        dim=20,
        blocks=(spec.Block(branches=branches),) * 2,
        final_norm=spec.Norm(),
        relative=spec.Relative(heads=4, buckets=8, distance=20, bidirectional=True) if relative else None,
    )
    made = make(spec.Model(embed=spec.Embed(vocab=61, dim=20), stack=stack, heads=(spec.Language(),), context=80), 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


MODELS = {"rope": {}, "window": {"window": 4}, "relative": {"relative": True}}


@given(
    row=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12),
    window=st.none() | st.integers(1, 13),
)
def test_masks_say_who_sees_whom(row: list[tuple[int, bool]], window: int | None) -> None:
    """A token sees what is before it; a marked one also the marked ones after it, in reach and of its own text."""
    numbers, flags = zip(*sorted(row, key=lambda pair: pair[0]), strict=True)
    segments = torch.tensor([numbers])
    pattern = spec.Pattern(window=window, marked="prefix")
    positions = torch.arange(len(row)).unsqueeze(0)
    (mask,) = Dense(positions, segments, (pattern,), len(row), marks=mark(torch.tensor([flags]), segments)).masks
    assert isinstance(mask, Tensor)
    for query in range(len(row)):
        for key in range(len(row)):
            order = key <= query or (flags[query] and flags[key])
            reach = window is None or abs(query - key) < window
            together = numbers[query] == numbers[key] != 0
            assert bool(mask[0, 0, query, key]) == ((order and reach and together) or query == key)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_unpacked_and_the_prefix_sees_itself(name: str) -> None:
    model = model_of(**MODELS[name])  # type: ignore[arg-type]
    texts = [torch.randint(0, 61, (1, count)) for count in (9, 6, 7)]
    lengths = (5, 6, 0)
    marks = [torch.arange(text.shape[1]).unsqueeze(0) < count for text, count in zip(texts, lengths, strict=True)]
    alone = [model(text, marks=flags) for text, flags in zip(texts, marks, strict=True)]
    segments = torch.tensor([[1] * 9 + [2] * 6 + [3] * 7])
    together = model(torch.cat(texts, 1), segments=segments, marks=torch.cat(marks, 1))
    assert close(together, torch.cat(alone, 1))
    other = texts[0].clone()
    other[0, 4] = (other[0, 4] + 1) % 61
    assert not close(model(other, marks=marks[0])[:, 1], alone[0][:, 1])  # what is later in the prefix is seen
    other = texts[0].clone()
    other[0, 7] = (other[0, 7] + 1) % 61
    assert torch.allclose(model(other, marks=marks[0])[:, :7], alone[0][:, :7], atol=1e-6)  # what follows is not
    assert not close(model(texts[0]), alone[0])  # the seeded fault: nobody marked it


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_full(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and beams, prompts of uneven lengths; a cache that forgets the marks is found."""
    model = model_of(**MODELS[name])  # type: ignore[arg-type]
    prompts = [torch.randint(0, 61, (count,)).tolist() for count in (9, 3, 14, 9)]

    def said(cached: bool, sampling: Sampling, some: list[list[int]] = prompts) -> list[tuple[list[int], list[float]]]:
        found = generate_ids(model, some, sampling, cached=cached)
        return [(one.ids, [token.logprob for token in one.logprobs or ()]) for one in found]

    greedy = Sampling(max_tokens=10, temperature=0.0, logprobs=0, ignore_eos=True)
    beams = Sampling(max_tokens=6, beams=3, n=2, ignore_eos=True)
    slow = said(False, greedy)
    for fast in (said(True, greedy), [said(True, greedy, [prompt])[0] for prompt in prompts]):
        assert [ids for ids, _ in fast] == [ids for ids, _ in slow]
        assert all(
            abs(a - b) < 2e-4 for (_, x), (_, y) in zip(fast, slow, strict=True) for a, b in zip(x, y, strict=True)
        )
    assert [ids for ids, _ in said(True, beams)] == [ids for ids, _ in said(False, beams)]
    real = caches.Contiguous.step
    monkeypatch.setattr(caches.Contiguous, "step", lambda self, *given: real(self, *given[:4]))
    assert said(True, greedy) != slow


def test_a_prefix_in_parts_is_refused() -> None:
    model = model_of()
    with pytest.raises(Refusal, match="both ways, hence whole"):
        Engine(model, memory=1 << 22)
    with pytest.raises(InputError, match="hence whole: not 4 columns"):
        generate_ids(model, [[1, 2, 3, 4, 5, 6]], Sampling(max_tokens=2), chunk=4)
    cache = Contiguous.of(model, 1, 20)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        model.hidden(ids, cache=cache, marks=ids > 0)
        with pytest.raises(InputError, match="first step"):
            model.hidden(ids, cache=cache, marks=ids > 0)


def test_the_pattern_is_a_value() -> None:
    said = model_of().spec
    assert said.causal
    assert said.prefixed
    assert from_plain(to_plain(said), spec.Model) == said
    plain = replace(said, stack=replace(said.stack, blocks=()))
    assert not plain.prefixed


def batch_of(texts: list[Tensor], lengths: tuple[int, ...]) -> list[Batch]:
    """One batch for each text; the first `lengths` tokens are a prompt, which is not learned."""
    found = []
    for text, count in zip(texts, lengths, strict=True):
        targets = torch.cat([text[:, 1:], torch.full((1, 1), IGNORED)], 1)
        targets[:, : count - 1] = IGNORED
        found.append(Batch(ids=text, targets={"language": targets}))
    return found


def test_what_is_not_learned_is_the_prefix() -> None:
    """The loop's batches say it themselves: of each text, up to the token that predicts the first target."""
    texts, lengths = [torch.randint(0, 61, (1, count)) for count in (9, 6, 7)], (5, 3, 1)
    alone = batch_of(texts, lengths)
    segments = torch.tensor([[1] * 9 + [2] * 6 + [3] * 7 + [0] * 2])
    empty = torch.zeros(1, 2, dtype=torch.int64)
    packed = Batch(
        ids=torch.cat([*texts, empty], 1),
        segments=segments,
        targets={"language": torch.cat([*(one.targets["language"] for one in alone), empty + IGNORED], 1)},
    )
    flags = [torch.arange(text.shape[1]) < count for text, count in zip(texts, lengths, strict=True)]
    for one, expected in zip(alone, flags, strict=True):
        assert torch.equal(one.prefixes()[0], expected)
    assert torch.equal(packed.prefixes()[0], torch.cat([*flags, empty[0] > 0]))
    model = model_of().train()
    results = []
    for batches in ([packed], alone, [replace(packed, marks=torch.zeros_like(segments, dtype=torch.bool))]):
        model.zero_grad()
        total = torch.stack([Language()(model, one)["language"].total for one in batches]).sum()
        total.backward()
        results.append([total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(close(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not close(results[2][0], results[1][0])  # the seeded fault: nothing is marked


def test_no_rows_have_no_marks() -> None:
    """As everywhere: nothing in, nothing out."""
    nothing = torch.zeros(0, 5, dtype=torch.int64)
    assert model_of()(nothing, marks=nothing).shape == (0, 5, 61)
