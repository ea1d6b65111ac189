"""Law 2 for windows in blocks: what a mask of the row says, outputs and gradients; and no table of T by T anywhere.

Maximum absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32. Each law has a seeded fault.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openbook.generate.cache import Contiguous
from openbook.models.make import make
from openbook.nn import attend, band, spec
from openbook.nn.marks import Marks, mark
from openbook.nn.model import LanguageModel
from openbook.nn.state import Context, Dense, Scores
from tests.laws.test_fast_equals_reference import Counter, agree, close

WINDOWS = [
    spec.Pattern(window=1),
    spec.Pattern(window=5),
    spec.Pattern(window=33),
    spec.Pattern(window=80),
    spec.Pattern(window=7, causal=False),
    spec.Pattern(window=40, causal=False),
    spec.Pattern(window=9, causal=False, marked="global"),
]


def states(
    pattern: spec.Pattern, tokens: int, segments: Tensor | None, marks: Marks | None
) -> tuple[attend.Band, Tensor]:
    """Who sees whom in blocks, and as one mask."""
    positions = torch.arange(tokens).expand(2, tokens)
    dense = Dense(positions, segments, (), tokens, marks=marks)
    marked = marks if pattern.marked else None
    return band.band(pattern, tokens, segments, marked, positions.device), dense._mask(pattern, segments)


def documents(tokens: int) -> Tensor:
    """Two rows: several texts with padding after and within; one text."""
    segments = torch.ones(2, tokens, dtype=torch.int64)
    segments[0, tokens // 4 :] = 2
    segments[0, tokens // 2 : tokens // 2 + 3] = 0
    segments[0, tokens // 2 + 3 :] = 3
    segments[0, tokens - 5 :] = 0
    return segments


def inputs(tokens: int, heads: int = 6, kv_heads: int = 2) -> list[Tensor]:
    shapes = ((heads, 7), (kv_heads, 7), (kv_heads, 9))
    return [torch.randn(2, tokens, *shape) for shape in shapes]


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["", "softcap"])
@pytest.mark.parametrize("segmented", [False, True], ids=["", "segments"])
@pytest.mark.parametrize("tokens", [70, 128, 161])
@pytest.mark.parametrize(
    "pattern", WINDOWS, ids=lambda p: f"{p.window}{'' if p.causal else ' both ways'}{p.marked or ''}"
)
def test_blocks_equal_the_mask(pattern: spec.Pattern, tokens: int, segmented: bool, softcap: float | None) -> None:
    segments = documents(tokens) if segmented else None
    marks = mark(torch.rand(2, tokens) < torch.tensor([[0.1], [0.02]]), segments) if pattern.marked else None
    blocks, seen = states(pattern, tokens, segments, marks)
    assert agree(
        lambda q, k, v: attend.mix(q, k, v, blocks, False, 0.3, softcap),
        lambda q, k, v: attend.mix_reference(q, k, v, seen, False, 0.3, softcap),
        inputs(tokens),
    )


@torch.no_grad()
@settings(max_examples=40)
@given(tokens=st.integers(1, 150), window=st.integers(1, 100), causal=st.booleans(), seed=st.integers(0, 9))
def test_blocks_of_any_row_and_window(tokens: int, window: int, causal: bool, seed: int) -> None:
    torch.manual_seed(seed)
    segments = (torch.rand(2, tokens) < 0.1).long().cumsum(1) * (torch.rand(2, tokens) < 0.9)
    blocks, seen = states(spec.Pattern(window=window, causal=causal), tokens, segments, None)
    q, k, v = inputs(tokens)
    assert close(attend.mix(q, k, v, blocks, False, 0.3), attend.mix_reference(q, k, v, seen, False, 0.3))


@pytest.mark.parametrize(
    "fault",
    [
        {"back": 1},  # blocks that do not reach as far as the window
        {"bias": lambda bias: bias.roll(1, 3)},  # another key's place
        {"bias": lambda bias: bias.masked_fill(bias == 0, -1e-3).roll(1, 1)},  # another block's edge
    ],
    ids=["reach", "place", "edge"],
)
def test_faults_of_blocks_are_found(fault: dict[str, Any]) -> None:
    blocks, seen = states(spec.Pattern(window=40), 130, documents(130), None)
    changed = {name: value(blocks.bias) if callable(value) else value for name, value in fault.items()}
    if "back" in changed:
        changed["bias"] = blocks.bias[..., blocks.size :]
    q, k, v = inputs(130)
    broken = attend.mix(q, k, v, blocks._replace(**changed), False, 0.3)
    assert not close(broken, attend.mix_reference(q, k, v, seen, False, 0.3))


# ------------------------------------------------------------------------------------------------ the choice


def model_of(layer: spec.Layer) -> LanguageModel:
    branches = (spec.Branch(layer=layer, norm=spec.Norm()), spec.Branch(layer=spec.MLP(hidden=16), norm=spec.Norm()))
    stack = spec.Stack(dim=12, blocks=(spec.Block(branches=branches),) * 2)
    return make(spec.Model(embed=spec.Embed(vocab=31, dim=12), stack=stack, heads=(spec.Language(),)), seed=3)


LAYERS: dict[str, spec.Layer] = {
    "causal": spec.Attention(heads=3, kv_heads=1, head_dim=4, pattern=spec.Pattern(window=9), rope=spec.Rope(dim=4)),
    "softcap": spec.Attention(heads=3, kv_heads=3, head_dim=4, pattern=spec.Pattern(window=9), softcap=2.0),
    "both ways": spec.Attention(heads=3, kv_heads=3, head_dim=4, pattern=spec.Pattern(window=9, causal=False)),
    "global": spec.GlobalAttention(heads=3, head_dim=4, window=9),
}


def run(model: LanguageModel, ids: Tensor, segments: Tensor | None, marks: Tensor | None) -> list[Tensor]:
    """Logits and gradients."""
    model.zero_grad()
    out = model(ids, segments=segments, marks=marks)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("segmented", [False, True], ids=["", "segments"])
@pytest.mark.parametrize("name", LAYERS)
def test_whole_models_do_not_know(name: str, segmented: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of(LAYERS[name]), 300
    ids = torch.randint(0, 31, (2, tokens))
    segments = documents(tokens) if segmented else None
    marks = (torch.rand(2, tokens) < 0.03) if name == "global" else None
    made: list[int] = []
    real = band.band
    monkeypatch.setattr("openbook.nn.state.band", lambda *args: made.append(1) or real(*args))
    fast = run(model, ids, segments, marks)
    assert made
    monkeypatch.setattr("openbook.nn.state.fits", lambda *_: False)
    slow = run(model, ids, segments, marks)
    assert len(made) == 1
    assert all(close(a, b) for a, b in zip(fast, slow, strict=True))


class Largest(TorchDispatchMode):
    """Notes the most numbers that any operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.most = max(self.most, one.untyped_storage().nbytes() // one.element_size())
        return out


@pytest.mark.parametrize("name", LAYERS)
def test_no_table_is_quadratic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor, forward and backward, doubles with the row; with one mask it quadruples: the seeded fault."""
    model = model_of(LAYERS[name])

    def most(tokens: int) -> int:
        marks = torch.arange(tokens).unsqueeze(0) < 2 if name == "global" else None
        with Largest() as largest:
            run(model, torch.zeros(1, tokens, dtype=torch.int64), None, marks)
        return largest.most

    assert most(2048) <= 2.2 * most(1024)
    monkeypatch.setattr("openbook.nn.state.fits", lambda *_: False)
    assert most(2048) > 3.5 * most(1024)


def test_short_rows_and_prefixes_have_one_mask() -> None:
    for pattern, tokens, blocks in (
        (spec.Pattern(window=64), 255, False),
        (spec.Pattern(window=64), 256, True),
        (spec.Pattern(window=200), 256, False),
        (spec.Pattern(window=100, causal=False), 256, False),
        (spec.Pattern(), 4096, False),
        (spec.Pattern(window=64, marked="prefix"), 4096, False),
    ):
        assert band.fits(pattern, tokens) == blocks


def test_a_position_bias_takes_the_mask() -> None:
    """The stack's bias is a table of the whole row: attention with one runs without blocks, and gives the same."""
    layer = spec.Attention(heads=3, kv_heads=3, head_dim=4, pattern=spec.Pattern(window=9), relative=True)
    stack = spec.Stack(
        dim=12,
        blocks=(spec.Block(branches=(spec.Branch(layer=layer, norm=spec.Norm()),)),),
        relative=spec.Relative(heads=3, buckets=8, distance=20),
    )
    model = make(spec.Model(embed=spec.Embed(vocab=31, dim=12), stack=stack, heads=(spec.Language(),)), seed=3)
    ids, segments = torch.randint(0, 31, (2, 300)), documents(300)
    together = model(ids, segments=segments)
    assert close(together[1], model(ids[1:])[0])
    assert close(together[0, :75], model(ids[:1, :75])[0])


def test_scores_of_a_dense_state_take_blocks() -> None:
    pattern = spec.Pattern(window=16)
    state = Dense(torch.arange(512).expand(1, 512), None, (pattern,), 512)
    assert isinstance(state.masks[0], band.Band)
    q = torch.randn(1, 512, 2, 4)
    out = state.attend(0, q, q, q, Scores(pattern=pattern, mask=0, scale=0.5))
    assert out.shape == q.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_blocks_trace_whole_and_once(name: str) -> None:
    """fullgraph, gradients through the traced block; three lengths, one of no whole blocks, teach that lengths vary."""
    torch._dynamo.reset()
    model, counter = model_of(LAYERS[name]), Counter()
    block = model.stack.blocks[0]
    traced = torch.compile(block, backend=counter, fullgraph=True)
    warm = 0
    for count in (256, 320, 300, 513, 1000, 640):
        positions = torch.arange(count).expand(2, count)
        marks = mark(torch.arange(count).expand(2, count) % 100 == 7, None) if name == "global" else None
        state = Dense(positions, None, model.stack.patterns, count, marks=marks)
        tables = tuple(table.rows(positions, 1024, 1024, torch.float32) for table in model.stack.tables)
        ctx, found = Context(state, tables, marks=marks), []
        x = torch.randn(2, count, 12)
        for function in (traced, block):
            own = x.clone().requires_grad_()
            out = function(own, ctx)
            out.square().sum().backward()
            found.append((out.detach(), own.grad))
        assert all(close(a, b) for a, b in zip(*found, strict=True))
        warm = counter.graphs if count == 300 else warm
    assert counter.graphs == warm <= 3
    torch._dynamo.reset()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["causal", "softcap"])
def test_a_long_prompt_is_read_into_a_cache_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same hidden states as the whole row's, at the prompt and after it; with one mask it quadruples, as above."""
    model = model_of(LAYERS[name])
    ids = torch.randint(0, 31, (2, 620))
    whole = model.hidden(ids)
    cache = Contiguous.of(model, 2, 700)
    parts = [model.hidden(ids[:, :600], cache=cache), model.hidden(ids[:, 600:], cache=cache)]
    assert close(torch.cat(parts, 1), whole)

    def most(tokens: int) -> int:
        with Largest() as largest:
            model.hidden(torch.zeros(1, tokens, dtype=torch.int64), cache=Contiguous.of(model, 1, tokens))
        return largest.most

    assert most(4096) <= 2.2 * most(2048)
    monkeypatch.setattr("openbook.generate.cache.fits", lambda *_: False)
    assert most(4096) > 3.5 * most(2048)
