"""What the experiments share: small models trained by the project's own loop, results as JSON, one picture each.

An experiment is a module with

    run(quick, seed) -> Results          what was measured, as plain values
    claims(results) -> dict[str, bool]   what was expected, and whether it came out
    draw(results, figure)                the picture
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from openbook.data.batch import Batch
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.loop import fit
from openbook.train.objectives import Language, Objective
from openbook.train.optim import Optimisation, Optimizer
from openbook.train.run import Plan, Run
from openbook.train.schedules import Schedule

Results = dict[str, Any]
IGNORE = -100
INTRODUCTION = """# Experiments

Written by `python -m experiments --page` from the experiments and from their full runs in `results/`; do not edit.
Each takes minutes on two cores: `python -m experiments NAME`. With `--quick` it takes seconds and must come out the
same way, which `make test` checks.
"""
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
COLOURS = ("#1f4e8c", "#c2571a", "#2f7d4f", "#8c2f6b", "#6b7280", "#b8860b", "#0f766e")


class Experiment(Protocol):
    """A module of this folder."""

    __doc__: str | None

    def run(self, quick: bool, seed: int) -> Results: ...
    def claims(self, results: Results) -> dict[str, bool]: ...
    def draw(self, results: Results, figure: Any) -> None: ...


def known() -> list[str]:
    """The experiments there are."""
    return sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem not in ("lab",))


def load(name: str) -> Experiment:
    """An experiment by its name."""
    module: Any = import_module(f"experiments.{name}")
    return module


def report(name: str, quick: bool, seed: int, out: Path) -> int:
    """Run one, write what was found, say what came out; 1 if something expected did not."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    experiment, began = load(name), time.monotonic()
    results = experiment.run(quick, seed)
    claims = experiment.claims(results)
    about = {
        "experiment": name,
        "quick": quick,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(written({**about, "claims": claims, "results": results}), encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    experiment.draw(results, figure)
    canvas.print_png(str(out / f"{name}.png"))
    print(f"{name}: {about['seconds']} s, {out / f'{name}.png'}")
    for claim, held in claims.items():
        print(f"  {'yes' if held else 'NO '}  {claim}")
    return 0 if all(claims.values()) else 1


def written(kept: Mapping[str, Any]) -> str:
    """As JSON, lists of numbers in one line each, to five digits."""
    rounded = json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.5g}"))
    indented = json.dumps(rounded, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), indented) + "\n"


def means(values: Sequence[float], of: int) -> list[float]:
    """Of each stretch of so many values."""
    return [sum(values[at : at + of]) / len(values[at : at + of]) for at in range(0, len(values), of)]


def page() -> str:
    """The page about all of them: question, method and expectation, what came out, the picture."""
    parts = [INTRODUCTION]
    for name in known():
        title, _, about = (load(name).__doc__ or "").partition("\n")
        kept = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        claims = "".join(f"- {claim}\n" for claim in kept["claims"])
        parts.append(f"## {title}\n{about.rstrip()}\n\n{claims}\n![{title}](results/{name}.png)\n")
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------ models


def decoder(
    vocab: int,
    mixers: Sequence[spec.Layer],
    *,
    dim: int = 64,
    ffn: spec.MLP | None = None,
    norm: spec.Norm | None = None,
    place: spec.Place = "pre",
    context: int | None = None,
    tied: bool = True,
    **embed: Any,
) -> spec.Model:
    """A small decoder: each mixer, and a feed-forward layer after it if there is one, is a block."""
    norm = norm or spec.Norm()
    layers = [(mixer,) if ffn is None else (mixer, ffn) for mixer in mixers]
    blocks = tuple(
        spec.Block(branches=tuple(spec.Branch(layer=one, norm=norm, place=place) for one in pair)) for pair in layers
    )
    return spec.Model(
        embed=spec.Embed(vocab=vocab, dim=dim, **embed),
        stack=spec.Stack(dim=dim, blocks=blocks, final_norm=norm if place == "pre" else None),
        heads=(spec.Language(tied=tied),),
        context=context,
    )


def attention(dim: int = 64, heads: int = 4, rope: bool = True, causal: bool = True, **more: Any) -> spec.Attention:
    """Plain multi-head attention with rotary positions."""
    size = dim // heads
    return spec.Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        rope=spec.Rope(dim=size) if rope else None,
        pattern=spec.Pattern(causal=causal),
        **more,
    )


# ------------------------------------------------------------------------------------------------ training


class Made:
    """Endless rows of a task: row r is a pure function of (seed, r). `row` gives ids [T+1] and what to learn [T+1]."""

    bytes = 0

    def __init__(self, row: Callable[[torch.Generator], tuple[Tensor, Tensor]], seed: int) -> None:
        self.row, self.seed = row, seed

    def batch(self, start: int, rows: int) -> Batch:
        """Rows from `start` on. What is not marked to learn is IGNOREd."""
        parts = [
            self.row(torch.Generator().manual_seed(self.seed * 10_000_019 + n)) for n in range(start, start + rows)
        ]
        ids, learn = (torch.stack(column) for column in zip(*parts, strict=True))
        targets = torch.where(learn, ids, IGNORE)
        return Batch(ids=ids[:, :-1].contiguous(), targets={"language": targets[:, 1:].contiguous()})


class Watch:
    """Keeps the training loss; every `every` steps also what `look` says of the model."""

    def __init__(self, model: LanguageModel, every: int, look: Callable[[LanguageModel], Mapping[str, float]] | None):
        self.model, self.every, self.look = model, every, look
        self.losses: list[float] = []
        self.experts: list[dict[str, float]] = []  # how evenly they were used, and the loss without theirs
        self.seen: list[dict[str, float]] = []

    def record(self, record: dict[str, Any]) -> None:
        """One step of the loop."""
        if record["kind"] != "step":
            return
        self.losses.append(float(record["loss"]))
        if "experts" in record:
            self.experts.append({**record["experts"], "language": record["language"]})
        if self.look is not None and (record["step"] % self.every == 0 or record["step"] == 1):
            self.model.eval()
            with torch.no_grad():
                self.seen.append({"step": record["step"], **self.look(self.model)})
            self.model.train()


def train(
    model: LanguageModel | spec.Model,
    rows: Any,
    steps: int,
    *,
    lr: float = 3e-3,
    batch: int = 32,
    seed: int = 0,
    schedule: Schedule | None = None,
    objective: Objective | None = None,
    every: int = 50,
    look: Callable[[LanguageModel], Mapping[str, float]] | None = None,
    correction: float = 0.0,
    **optimizer: Any,
) -> tuple[LanguageModel, Watch]:
    """Train by the project's loop; the model, and what was seen on the way."""
    if isinstance(model, spec.Model):
        model = make(model, seed)
    watch = Watch(model, every, look)
    settings = {"weight_decay": 0.01, **optimizer}
    run = Run(
        model=model,
        objective=objective or Language(),
        rows=rows,
        optimizer=Optimizer(model, Optimisation(lr=lr, **settings)),
        schedule=schedule or Schedule(shape="cosine", warmup=0.05, floor=0.05),
        plan=Plan(steps=steps, rows=((0, batch),), seed=seed, layers_every=0, correction=correction),
        watchers=[watch],
    )
    fit(run)
    return model.eval(), watch


@torch.no_grad()
def accuracy(model: LanguageModel, batch: Batch) -> float:
    """The share of what is to be learned that is the likeliest token."""
    logits, targets = model(batch.ids, types=batch.types), batch.targets["language"]
    learn = targets != IGNORE
    return float((logits.argmax(-1)[learn] == targets[learn]).float().mean())


def text(characters: int) -> tuple[Tensor, int]:
    """The bundled stories as ids of their letters, and how many letters there are."""
    stories = (ROOT / "corpus" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()
    words = "\n".join(json.loads(line)["text"] for line in stories)[:characters]
    letters = sorted(set(words))
    number = {letter: place for place, letter in enumerate(letters)}
    return torch.tensor([number[letter] for letter in words]), len(letters)


def windows(ids: Tensor, length: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Rows that are windows of a text."""

    def row(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = int(torch.randint(0, len(ids) - length - 1, (), generator=generator))
        return ids[start : start + length + 1], torch.ones(length + 1, dtype=torch.bool)

    return row


# ------------------------------------------------------------------------------------------------ pictures


def lines(axes: Any, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], **labels: Any) -> None:
    """Named curves with a legend; `labels` are set on the axes."""
    for colour, (name, (x, y)) in zip(COLOURS, curves.items(), strict=False):
        axes.plot(x, y, color=colour, label=name, linewidth=1.6, marker="o" if len(x) < 12 else None, markersize=3.5)
    axes.grid(alpha=0.25)
    axes.set(**labels)
    axes.legend(frameon=False, fontsize=9)
