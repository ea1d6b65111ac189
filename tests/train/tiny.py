"""A tiny real model and data for the tests of training: every mechanism of the loop, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openbook.data.batch import Batch
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.init import initialise
from openbook.nn.model import LanguageModel
from openbook.train.checkpoint import Cadence, Checkpoints
from openbook.train.head_loss import IGNORE
from openbook.train.metrics import Journal
from openbook.train.objectives import Language
from openbook.train.optim import Optimisation, Optimizer
from openbook.train.run import Plan, Run
from openbook.train.schedules import Schedule

VOCAB, BLOCK = 61, 24


def tiny_spec(
    *,
    dim: int = 16,
    layers: int = 2,
    dropout: float = 0.0,
    experts: int = 0,
    moe: dict[str, Any] | None = None,
    routing: dict[str, Any] | None = None,
    tied: bool = True,
    **head: Any,
) -> spec.Model:
    """A small pre-norm decoder; with `experts`, a mixture in every block, of these values."""
    attention = spec.Attention(heads=4, kv_heads=2, head_dim=dim // 4, rope=spec.Rope(dim=dim // 4))
    mlp = spec.MLP(hidden=2 * dim)
    ffn: spec.MLP | spec.MoE = mlp
    if experts:
        more = {"balance": 0.01} | (moe or {})
        ffn = spec.MoE(experts=experts, top_k=2, expert=mlp, routing=spec.Routing(**(routing or {})), **more)
    block = spec.Block(
        branches=tuple(spec.Branch(layer=layer, norm=spec.Norm(), dropout=dropout) for layer in (attention, ffn))
    )
    return spec.Model(
        embed=spec.Embed(vocab=VOCAB, dim=dim),
        stack=spec.Stack(dim=dim, blocks=(block,) * layers, final_norm=spec.Norm()),
        heads=(spec.Language(tied=tied, **head),),
        context=BLOCK,
    )


def tiny_model(seed: int = 1, **values: Any) -> LanguageModel:
    """The model of `tiny_spec`, with weights large enough to disagree about things."""
    model = build(tiny_spec(**values))
    initialise(model, seed, std=0.3)
    return model


class Text:
    """Endless rows of learnable noise: row r is a pure function of r. Rows end in padding of unequal length."""

    bytes = 0

    def __init__(self, seed: int = 0, padded: bool = True) -> None:
        self.seed, self.padded = seed, padded

    def batch(self, start: int, rows: int) -> Batch:
        parts = [self.row(number) for number in range(start, start + rows)]
        ids, segments, targets = (torch.stack(column) for column in zip(*parts, strict=True))
        return Batch(ids=ids, segments=segments if self.padded else None, targets={"language": targets})

    def row(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, segments and targets, [T] each: a walk through the vocabulary in small steps."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_000 + number)
        steps = torch.randint(1, 4, (BLOCK + 1,), generator=generator)
        ids = steps.cumsum(0) % VOCAB
        length = int(torch.randint(3, BLOCK + 1, (), generator=generator)) if self.padded else BLOCK
        segments = (torch.arange(BLOCK) < length).int()
        targets = torch.where(segments == 1, ids[1:], IGNORE)
        return ids[:-1] * segments, segments, targets


class Held:
    """Two held-out batches of other rows."""

    bytes = 40

    def __iter__(self) -> Iterator[Batch]:
        text = Text(seed=99)
        return iter([text.batch(0, 4), text.batch(4, 4)])


def tiny_run(
    folder: Path | None = None,
    *,
    steps: int = 12,
    rows: Sequence[tuple[int, int]] = ((0, 8),),
    micro_rows: int = 0,
    optimizer: str = "adamw",
    objective: Language | None = None,
    every: float = 1e9,
    model: LanguageModel | None = None,
    identity: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    **values: Any,
) -> Run:
    """A run with everything on it; `every=0` saves after each step, `values` go to the model's spec."""
    model = model or tiny_model(**values)
    course = Plan(steps=steps, rows=tuple(rows), micro_rows=micro_rows, heldout_every=5, layers_every=3, seed=3)
    store = Checkpoints(folder / "checkpoints", identity or {"run": "tiny"}, Cadence(every=every)) if folder else None
    if store and not every:
        store.due = lambda: True  # type: ignore[method-assign]
    return Run(
        model=model,
        objective=objective or Language(),
        rows=Text(),
        optimizer=Optimizer(model, Optimisation(name=optimizer, lr=0.01)),  # type: ignore[arg-type]
        schedule=Schedule(warmup=0.2),
        plan=replace(course, **(plan or {})),
        heldout=Held(),
        store=store,
        journal=Journal(folder / "metrics.jsonl") if folder else None,
    )
