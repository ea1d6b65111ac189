"""The Transformer of 2017 as a value, beside torch's own module: sines, norms after each step, scaled embeddings, ties.

Vaswani et al. 2017: §3.1 (post-norm residuals), §3.4 (embeddings by √D, one matrix for both tables and the head), §3.5
(sinusoidal positions), §5.3 (warm-up), §5.4 (label smoothing).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from openbook.data.batch import Batch
from openbook.models.describe import inventory, parameters
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.objectives import Language
from openbook.train.schedules import Schedule

V, D, H, F, N = 37, 24, 4, 40, 2
BOUND = 1e-5


def transformer(vocab: int, dim: int, heads: int, hidden: int, layers: int) -> spec.Model:
    """The value."""
    norm = spec.Norm(kind="layer", bias=True)
    shape = {"heads": heads, "kv_heads": heads, "head_dim": dim // heads, "bias": True, "out_bias": True}
    mlp = spec.MLP(hidden=hidden, activation="relu", gated=False, bias=True)

    def stack(causal: bool) -> spec.Stack:
        attention = spec.Attention(pattern=spec.Pattern(causal=causal), **shape)  # type: ignore[arg-type]
        cross = spec.CrossAttention(**shape)  # type: ignore[arg-type]
        layers_ = (attention, cross, mlp) if causal else (attention, mlp)
        block = spec.Block(branches=tuple(spec.Branch(layer=one, norm=norm, place="post") for one in layers_))
        return spec.Stack(dim=dim, blocks=(block,) * layers)

    embed = spec.Embed(vocab=vocab, dim=dim, positions=spec.Sinusoidal(), scale=math.sqrt(dim))
    source = spec.Encoder(stack=stack(False))
    return spec.Model(embed=embed, stack=stack(True), heads=(spec.Language(),), source=source)


def waves(count: int, dim: int) -> Tensor:
    """The paper's formula, number by number."""
    table = torch.empty(count, dim)
    for position in range(count):
        for i in range(dim):
            angle = position / 10000 ** (2 * (i // 2) / dim)
            table[position, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table


class Reference(nn.Module):
    """torch's module, with the paper's embedding and head around it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(V, D) * 0.3)
        self.inner = nn.Transformer(D, H, N, N, F, dropout=0.0, batch_first=True)
        self.inner.encoder.norm = self.inner.decoder.norm = None  # the paper's stacks end with their last block

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        first, second = (self.table[ids] * math.sqrt(D) + waves(ids.shape[1], D) for ids in (source, target))
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden: Tensor = self.inner(first, second, tgt_mask=mask)
        return hidden @ self.table.t()


def twin(reference: Reference) -> LanguageModel:
    """Our model with the reference's weights."""
    model = make(transformer(V, D, H, F, N)).eval()
    assert model.source is not None
    with torch.no_grad():
        model.embed.tokens.weight.copy_(reference.table)
        for tower, other in ((model.source.stack, reference.inner.encoder), (model.stack, reference.inner.decoder)):
            for block, layer in zip(tower.blocks, other.layers, strict=True):
                *mixers, ffn = block.branches
                names = ["self_attn", "multihead_attn"]
                for branch, name in zip(mixers, names, strict=False):
                    their, our = getattr(layer, name), branch.layer
                    for part, w, b in zip(
                        "qkv", their.in_proj_weight.chunk(3), their.in_proj_bias.chunk(3), strict=True
                    ):
                        getattr(our, part).weight.copy_(w)
                        getattr(our, part).bias.copy_(b)
                    our.out.load_state_dict(their.out_proj.state_dict())
                ffn.layer.up.load_state_dict(layer.linear1.state_dict())
                ffn.layer.down.load_state_dict(layer.linear2.state_dict())
                for number, branch in enumerate(block.branches, start=1):
                    branch.norm.load_state_dict(getattr(layer, f"norm{number}").state_dict())
    return model


def pair() -> tuple[Reference, LanguageModel, Tensor, Tensor]:
    torch.manual_seed(11)
    reference = Reference().eval()
    with torch.no_grad():
        for parameter in reference.inner.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return reference, twin(reference), torch.randint(0, V, (3, 11)), torch.randint(0, V, (3, 7))


def test_it_equals_torch() -> None:
    reference, model, source, target = pair()
    theirs = reference(source, target)
    ours = model(target, source=source)
    assert (ours - theirs).detach().abs().max() <= BOUND * max(1.0, float(theirs.detach().abs().max()))
    theirs.square().sum().backward()
    ours.square().sum().backward()
    expected, found = reference.table.grad, model.embed.tokens.weight.grad
    assert expected is not None
    assert found is not None
    assert (found - expected).abs().max() <= BOUND * max(1.0, float(expected.abs().max()))


def test_waves_in_halves_break_it() -> None:
    """The seeded fault: the other order of the same sines and cosines."""
    reference, model, source, target = pair()
    assert model.embed.waves is not None
    model.embed.waves.rule = spec.Sinusoidal(halves=True)
    model.embed.waves.tables.clear()
    assert not torch.allclose(model(target, source=source), reference(source, target), atol=1e-2)


def test_label_smoothing_is_torch_s() -> None:
    _, model, source, target = pair()
    goal = torch.randint(0, V, target.shape)
    batch = Batch(ids=target, targets={"language": goal}, source=source)
    total = Language(label_smoothing=0.1)(model, batch)["language"].total
    logits = model(target, source=source).flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, goal.flatten(), reduction="sum", label_smoothing=0.1)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


def test_the_schedule_is_the_paper_s() -> None:
    """lrate = D^-0.5 · min(step^-0.5, step · warmup^-1.5), as a share of its peak at `warmup`."""
    schedule, warmup = Schedule(shape="inverse-sqrt", warmup=4000.0), 4000
    for step in (1, 100, 3999, 4000, 4001, 100_000):
        paper = min(step**-0.5, step * warmup**-1.5) / warmup**-0.5
        assert schedule.factor(step - 1, 100_000) == pytest.approx(paper, rel=1e-6)


def test_the_base_model_has_the_paper_s_size() -> None:
    """Table 3: base 65 million parameters, big 213 million, with one vocabulary of about 37,000."""
    base = sum(parameters(inventory(transformer(37_000, 512, 8, 2048, 6))).values())
    big = sum(parameters(inventory(transformer(37_000, 1024, 16, 4096, 6))).values())
    assert 62e6 < base < 66e6
    assert 209e6 < big < 216e6
