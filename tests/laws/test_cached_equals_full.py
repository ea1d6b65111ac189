"""Law 3: cached == full. The logits of a model with a cache are those of a pass over the whole row, however it is cut.

For every registered family and archetype: token by token, ragged batches against each row alone, chunked prefill, rows
that split, move and drop (beams), and going back to a snapshot. Pages are held to it through the engine, in
test_served_alone.py. In fp32, within
1e-5 × max(1, largest logit). Seeded faults: positions off by one, a stale row, holes that are seen, a window one too
wide, a slot that is not reordered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.errors import InputError
from openbook.generate import cache as caches
from openbook.generate import lanes
from openbook.generate.cache import Contiguous
from openbook.models.load import load
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.stack import Tower
from tests import families
from tests.nn import recurrent

V, D, CONTEXT = 67, 32, 512
RMS, LAYER = spec.Norm(), spec.Norm(kind="layer", bias=True)
ROPE = spec.Rope(dim=8)
MLP = spec.MLP(hidden=48)
Layers = list[list[spec.Layer]]


def decoder(layers: Layers, norm: spec.Norm = RMS, place: spec.Place = "pre", **more: object) -> spec.Model:
    """A model of these layers with the rest at its simplest."""
    embed = {"positions": more.pop("positions", None)}
    relative, source, head = more.pop("relative", None), more.pop("source", None), more.pop("head", spec.Language())
    order = more.pop("order", None)
    assert not more
    blocks = tuple(spec.Block(branches=tuple(spec.Branch(layer=x, norm=norm, place=place) for x in b)) for b in layers)
    return spec.Model(
        embed=spec.Embed(vocab=V, dim=D, **embed),
        stack=spec.Stack(dim=D, blocks=blocks, order=order, final_norm=norm, relative=relative),
        heads=(head,),
        source=source,
        context=CONTEXT,
    )


def heads(kv: int = 2, **more: object) -> spec.Attention:
    return spec.Attention(heads=4, kv_heads=kv, head_dim=8, **more)


def windowed(window: int | None, **more: object) -> spec.Attention:
    return heads(pattern=spec.Pattern(window=window), rope=ROPE, **more)


SELECTIVE = spec.Selective(inner=48, state=8, kernel=4, rank=3)
DUAL = spec.StateSpaceDual(heads=6, head_dim=7, groups=2, state=5, kernel=3, norm=RMS)
DELTA = spec.GatedDelta(heads=2, value_heads=4, key_dim=6, value_dim=9, kernel=3, norm=RMS)
RELATIVE = spec.Relative(heads=4, buckets=8, distance=20)
T5_ENCODER = spec.Encoder(
    stack=spec.Stack(
        dim=D,
        blocks=(
            spec.Block(
                branches=(
                    spec.Branch(layer=heads(4, pattern=spec.Pattern(causal=False), relative=True), norm=RMS),
                    spec.Branch(layer=MLP, norm=RMS),
                )
            ),
        ),
        final_norm=RMS,
        relative=spec.Relative(heads=4, buckets=8, distance=20, bidirectional=True),
    )
)
T5 = [[heads(4, relative=True), spec.CrossAttention(heads=4, kv_heads=4, head_dim=8), MLP]] * 2
EXPERTS = spec.MoE(
    experts=8,
    top_k=3,
    expert=spec.MLP(hidden=24, activation="quick_gelu", bias=True, limit=0.7, offset=1.0),
    routing=spec.Routing(score="sigmoid", scale=1.5, groups=4, top_groups=2, group_score="sum2", correction=True),
    shared=MLP,
    shared_gate=True,
)
LONGROPE = spec.LongRopeScaling(short=(1.0, 1.1, 1.2, 1.3), long=(1.5, 2.0, 3.0, 5.0), original=16, attention=1.1)
SPECS = {
    "llama": decoder([[heads(rope=ROPE), MLP]] * 2),
    "gpt2": decoder([[heads(4, bias=True), MLP]] * 2, norm=LAYER, positions=spec.Learned(count=CONTEXT)),
    "mistral": decoder([[windowed(5), MLP]] * 2),
    "gemma2": decoder([[windowed(4, softcap=3.0), MLP], [windowed(None, softcap=3.0), MLP]] * 2, place="both"),
    "qwen3": decoder([[heads(1, rope=ROPE, norm=RMS), MLP]] * 2),
    "mixtral": decoder([[heads(rope=ROPE), spec.MoE(experts=4, top_k=2, expert=MLP)]] * 2),
    "experts": decoder([[heads(rope=ROPE), EXPERTS]] * 2),
    "sinks": decoder([[windowed(4, sinks=True), MLP], [heads(rope=ROPE, sinks=True), MLP]]),
    "dynamic": decoder([[heads(rope=spec.Rope(dim=8, scaling=spec.DynamicScaling(factor=4.0, original=8))), MLP]] * 2),
    "chunks": decoder([[heads(pattern=spec.Pattern(chunk=5), rope=ROPE), MLP], [heads(), MLP]] * 2),
    "longrope": decoder([[heads(rope=spec.Rope(dim=8, scaling=LONGROPE)), MLP]] * 2),
    "after": decoder([[heads(rope=ROPE, norm=spec.QueryKeyNorm(norm=RMS, over="width")), MLP]] * 2, place="after"),
    "heads": decoder([[heads(rope=ROPE, norm=spec.QueryKeyNorm(norm=RMS, over="heads", rotated=True)), MLP]] * 2),
    "sharper": decoder([[heads(temperature=spec.Temperature(every=4, scale=0.4, offset=1)), MLP]] * 2),
    "mamba": decoder([[SELECTIVE]] * 2),
    "states": decoder([[spec.Structured(state=10), MLP], [DUAL], [DELTA]]),
    "hybrid": decoder([[SELECTIVE], [windowed(6), MLP], [heads(rope=ROPE), MLP]]),
    "shared": decoder([[SELECTIVE], [windowed(6), MLP], [heads(rope=ROPE), MLP]], order=(0, 1, 0, 2, 1, 1, 0)),
    "t5": decoder(T5, relative=RELATIVE, source=T5_ENCODER),
    **recurrent.ALL,
}
RECURRENT = {"lstm", "bahdanau", "luong-general-fed"}  # of those the quick gate
CASES = {f"family {case.name}": case for case in families.DECODERS + families.ENCODER_DECODERS}
NAMES = [*SPECS, *CASES]
QUICK = {*(SPECS.keys() - recurrent.ALL.keys()), *RECURRENT, *(name for name, case in CASES.items() if case.core)}
MARKED = [pytest.param(name, id=name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in NAMES]


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


@cache
def family_of(name: str) -> LanguageModel:
    with tempfile.TemporaryDirectory() as root:
        return load(CASES[name].folder(Path(root)))


def model_of(name: str) -> LanguageModel:
    """A random model whose weights are large enough that every part shows in the logits."""
    if name in CASES:
        return family_of(name)
    model = build(SPECS[name]).eval()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.named_parameters():
        spread = 0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(1.0 if "norm" in key and "weight" in key else 0.0, spread, generator=generator)
    return model


class Bench:
    """A model with its texts: what a row of ids has to give."""

    def __init__(self, name: str, rows: int = 3) -> None:
        self.model = model_of(name)
        generator = torch.Generator().manual_seed(4)
        self.texts = [torch.randint(0, V, (30,), generator=generator) for _ in range(rows)]
        self.length = 40  # what dynamic scaling is fixed to
        self.encoded: Tensor | None = None
        self.source_segments: Tensor | None = None
        if self.model.source is not None:
            source = torch.randint(0, V, (rows, 9), generator=generator)
            self.source_segments = torch.ones_like(source)
            for row in range(rows):
                self.source_segments[row, 9 - 2 * row :] = 0
            self.encoded = self.model.encode_source(source, self.source_segments)

    def full(self, row: int, ids: Tensor) -> Tensor:
        """Logits [T,V] of a pass over the whole row, alone."""
        return self.model(ids[None], **self.memory([row]), length=self.length)[0]

    def memory(self, rows: list[int]) -> dict[str, Tensor]:
        if self.encoded is None or self.source_segments is None:
            return {}
        return {"encoded": self.encoded[rows], "source_segments": self.source_segments[rows]}

    def cache(self, rows: int, capacity: int = 64) -> Contiguous:
        return Contiguous.of(self.model, rows, capacity, length=self.length)

    def step(self, cache: Contiguous, rows: list[int], parts: list[Tensor]) -> list[Tensor]:
        """Feeds each row its part (of any length) in one padded step; logits of the real tokens."""
        width = max(len(part) for part in parts)
        ids = torch.zeros(len(parts), width, dtype=torch.int64)
        segments = torch.zeros_like(ids)
        for i, part in enumerate(parts):
            ids[i, : len(part)], segments[i, : len(part)] = part, 1
        given = None if bool(segments.all()) else segments
        logits = self.model(ids, segments=given, cache=cache, **self.memory(rows))
        return [logits[i, : len(part)] for i, part in enumerate(parts)]


def close(ours: Tensor, reference: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(reference.abs().max()))
    assert ours.shape == reference.shape
    worst = float((ours - reference).abs().max())
    assert worst <= bound, f"{worst} > {bound}"


def token_by_token(name: str, prompt: int = 7) -> None:
    bench = Bench(name, rows=1)
    ids = bench.texts[0]
    cache = bench.cache(1)
    parts = [ids[:prompt], *ids[prompt:].split(1)]
    logits = torch.cat([bench.step(cache, [0], [part])[0] for part in parts])
    reference = bench.full(0, ids)
    close(logits, reference)
    assert torch.equal(logits.argmax(-1), reference.argmax(-1))
    assert cache.lengths.tolist() == [30]


def ragged(name: str, chunks: tuple[list[int], ...]) -> None:
    """Each row is fed chunks of its own lengths; every row must be what it is alone."""
    bench = Bench(name)
    cache = bench.cache(3)
    at, got = [0, 0, 0], [[], [], []]
    for chunk in chunks:
        parts = [bench.texts[row][at[row] : at[row] + count] for row, count in enumerate(chunk)]
        for row, logits in enumerate(bench.step(cache, [0, 1, 2], parts)):
            got[row].append(logits)
            at[row] += chunk[row]
    for row in range(3):
        close(torch.cat(got[row]), bench.full(row, bench.texts[row][: at[row]]))
    assert cache.lengths.tolist() == at


RAGGED = {
    "prompts": ([3, 9, 6], *[[1, 1, 1]] * 12),
    "one much longer": ([1, 20, 2], *[[1, 1, 1]] * 9),
    "chunks": ([4, 4, 4], [2, 7, 1], [5, 0, 3], *[[1, 1, 1]] * 5),
    "late start": ([0, 5, 2], [6, 3, 0], *[[1, 1, 1]] * 5),
}


def reordered(name: str) -> None:
    """Rows split, swap and drop between steps, as beams do."""
    bench = Bench(name)
    cache = bench.cache(3)
    histories = [text[:length] for text, length in zip(bench.texts, (5, 8, 2), strict=True)]
    owners = [0, 1, 2]
    bench.step(cache, owners, histories)
    fresh = iter(torch.randint(0, V, (200,), generator=torch.Generator().manual_seed(9)))
    for places in ([0, 1, 2], [1, 1, 0], [2, 0, 1], [1, 0], [0, 0, 1, 1], [3, 2, 1, 0]):
        cache.reorder(torch.tensor(places))
        histories, owners = [histories[p] for p in places], [owners[p] for p in places]
        parts = [next(fresh)[None] for _ in places]
        histories = [torch.cat(pair) for pair in zip(histories, parts, strict=True)]
        for logits, row, ids in zip(bench.step(cache, owners, parts), owners, histories, strict=True):
            close(logits, bench.full(row, ids)[-1:])


@pytest.mark.parametrize("name", MARKED)
def test_token_by_token(name: str) -> None:
    token_by_token(name)
    token_by_token(name, prompt=1)


@pytest.mark.parametrize("how", RAGGED)
@pytest.mark.parametrize("name", MARKED)
def test_ragged_batch_is_each_row_alone(name: str, how: str) -> None:
    ragged(name, RAGGED[how])


@pytest.mark.parametrize("name", MARKED)
def test_chunked_prefill_is_whole(name: str) -> None:
    bench = Bench(name, rows=1)
    reference = bench.full(0, bench.texts[0])
    for size in (1, 4, 13, 30):
        cache = bench.cache(1)
        close(torch.cat([bench.step(cache, [0], [part])[0] for part in bench.texts[0].split(size)]), reference)


@pytest.mark.parametrize("name", MARKED)
def test_rows_split_move_and_drop(name: str) -> None:
    reordered(name)


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("lengths", [[6, 6], [6, 2]])
def test_back_to_a_snapshot(name: str, lengths: list[int]) -> None:
    bench = Bench(name, rows=2)
    cache = bench.cache(2)
    start = [text[:n] for text, n in zip(bench.texts, lengths, strict=True)]
    bench.step(cache, [0, 1], start)
    point = cache.snapshot()
    bench.step(cache, [0, 1], [text[20:23] for text in bench.texts])  # a draft that is rejected
    bench.step(cache, [0, 1], [text[23:24] for text in bench.texts])
    cache.restore(point)
    assert cache.lengths.tolist() == lengths
    parts = [text[10:11] for text in bench.texts]
    for row, logits in enumerate(bench.step(cache, [0, 1], parts)):
        close(logits, bench.full(row, torch.cat([start[row], parts[row]]))[-1:])


@pytest.mark.parametrize("name", ["mistral", "gemma2", "hybrid", "chunks"])
def test_windows_let_go_and_still_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SLACK", 3)  # the block moves every few tokens
    for module in (caches, lanes):
        monkeypatch.setattr(module, "START", 4)  # and the others double
    token_by_token(name)
    ragged(name, RAGGED["one much longer"])
    reordered(name)
    bench = Bench(name, rows=1)
    cache = bench.cache(1)
    for part in bench.texts[0].split(1):
        bench.step(cache, [0], [part])
    window = [lane for lane in cache.lanes.values() if lane.kind.window is not None]
    assert all(lane.keys.shape[2] <= lane.kind.window + 3 for lane in window)


def test_a_window_that_moved_on_cannot_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SLACK", 2)
    bench = Bench("mistral", rows=1)
    cache = bench.cache(1)
    bench.step(cache, [0], [bench.texts[0][:8]])
    point = cache.snapshot()
    for part in bench.texts[0][8:].split(1):
        bench.step(cache, [0], [part])
    with pytest.raises(InputError, match=r"from 30 to 8 tokens.*window of 5"):
        cache.restore(point)


def test_explicit_positions_are_kept() -> None:
    bench = Bench("llama", rows=1)
    ids, places = bench.texts[0][None, :12], torch.arange(12)[None] * 2 + 5
    reference = bench.model(ids, positions=places)[0]
    cache = bench.cache(1)
    parts = [bench.model(ids[:, a:b], positions=places[:, a:b], cache=cache)[0] for a, b in ((0, 5), (5, 6), (6, 12))]
    close(torch.cat(parts), reference)


def test_bounds_are_errors_with_numbers() -> None:
    bench = Bench("llama", rows=1)
    cache = bench.cache(1, capacity=8)
    bench.step(cache, [0], [bench.texts[0][:8]])
    with pytest.raises(InputError, match="capacity is 8 tokens a row, 8 are used and 1 more"):
        bench.step(cache, [0], [bench.texts[0][8:9]])
    with pytest.raises(InputError, match="has 1 rows: got 2"):
        bench.model(torch.zeros(2, 1, dtype=torch.int64), cache=cache)


def test_a_cache_lives_on_between_inference_mode_and_not() -> None:
    bench = Bench("hybrid")
    cache = bench.cache(3)
    with torch.inference_mode():
        bench.step(cache, [0, 1, 2], [text[:n] for text, n in zip(bench.texts, (3, 9, 6), strict=True)])
        cache.reorder([0, 1, 2])
    with torch.enable_grad():
        got = bench.step(cache, [0, 1, 2], [text[n : n + 1] for text, n in zip(bench.texts, (3, 9, 6), strict=True)])
    for row, n in enumerate((3, 9, 6)):
        close(got[row], bench.full(row, bench.texts[row][: n + 1])[-1:])


def shifted(patch: pytest.MonkeyPatch) -> None:
    """Every cached step after the first counts its positions one too far."""
    plain = Contiguous.step

    def step(self: Contiguous, *given: object) -> caches.Step:
        state = plain(self, *given)
        if state.used:
            state.positions = state.positions + 1
        return state

    patch.setattr(Contiguous, "step", step)


def holes(patch: pytest.MonkeyPatch) -> None:
    """Padding stands where its column stands."""
    patch.setattr(caches, "HOLE", 0)


def stale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(caches.Lane, "reorder", lambda *_: None)


def stuck(patch: pytest.MonkeyPatch) -> None:
    """Slots stay where they are when rows move."""
    plain = Contiguous.reorder

    def reorder(self: Contiguous, rows: Tensor) -> None:
        slots = self.slots
        plain(self, rows)
        self.slots = {i: tuple(t[: self.rows] for t in kept) for i, kept in slots.items()}

    patch.setattr(Contiguous, "reorder", reorder)


def wide(patch: pytest.MonkeyPatch) -> None:
    """The cache takes a window as one wider than it is."""
    plain = caches.visible

    def visible(pattern: spec.Pattern, *places: Tensor) -> Tensor:
        more = None if pattern.window is None else pattern.window + 1
        return plain(spec.Pattern(causal=pattern.causal, window=more), *places)

    patch.setattr(caches, "visible", visible)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = {
    "positions off by one": (shifted, lambda: token_by_token("llama")),
    "learned positions off by one": (shifted, lambda: token_by_token("gpt2")),
    "holes are seen": (holes, lambda: ragged("llama", RAGGED["prompts"])),
    "window one too wide": (wide, lambda: ragged("mistral", RAGGED["prompts"])),
    "stale rows": (stale, lambda: reordered("llama")),
    "stuck slots": (stuck, lambda: reordered("mamba")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_sees_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, law = FAULTS[fault]
    law()
    seed(monkeypatch)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        law()


@pytest.mark.slow
def test_the_bench_shows_every_part() -> None:
    """The random models are sensitive: a token at the far end of what is seen changes the logits."""
    for name in (name for name in NAMES if name not in CASES or CASES[name].kind == "decoder"):
        bench = Bench(name, rows=1)
        assert isinstance(bench.model.stack, Tower)
        ids = bench.texts[0][:4]
        other = ids.clone()
        other[0] = (other[0] + 1) % V
        assert (bench.full(0, ids)[-1] - bench.full(0, other)[-1]).abs().max() > 1e-3, name
