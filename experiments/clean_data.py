"""Clean text teaches more: the same tokens, raw and cleaned.

Question: what does dirt in the training text cost? Method: half of the bundled stories as they might come from the web:
each page inside menus, cookie lines and markup, some wrongly decoded, some pages many times, lists of keywords and
broken bytes among them. `openbook data prepare` cleans them with its usual steps (repair, the rules of C4, Gopher and
FineWeb, exact and near duplicates). The same small model of bytes learns as many tokens of either; its loss is that on
clean stories it never saw. Expected (Raffel et al. 2020 §3.4.1; Lee et al. 2022; Penedo et al. 2023): the cleaned text
gives a lower loss at equal tokens, so that it reaches the raw text's with fewer tokens, or with a smaller model.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.lab import ROOT, Made, Results, attention, decoder, lines, train, windows
from openbook.data.batch import Batch
from openbook.data.clean.repair import Repair
from openbook.data.clean.rules import C4
from openbook.data.corpus.executor import Here
from openbook.data.corpus.recipe import Cleaning, Corpus, Duplicates, Source
from openbook.data.corpus.run import build
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.objectives import Language

LENGTH, ROWS = 80, 16

MENU = (
    "Home",
    "About us",
    "Contact",
    "Sign in",
    "Shop",
    "Stories",
    "Next page",
    "Previous page",
    "Share this",
    "Top 10",
)
COOKIES = "We use cookies to make this page better. Read our cookie policy and our terms of use."
FOOTER = "Copyright 2019 Story Pages Ltd | All rights reserved | Privacy policy | Imprint | JavaScript must be enabled"
KEYWORDS = "cheap best price free buy now online order shop deal sale discount offer win bonus click here today"


def stories() -> list[str]:
    """The bundled stories."""
    bundled = (ROOT / "corpus" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in bundled]


def page(story: str, draw: random.Random) -> str:
    """A story as a page of the web."""
    menu = " | ".join(draw.sample(MENU, 6))
    parts = story.split("\n")
    if draw.random() < 0.3:
        parts = [f'<p class="text"><span style="font-size:{draw.randint(9, 14)}px">', *parts, "</span></p><br/>"]
    text = "\n".join([menu, COOKIES, *parts, *draw.sample(MENU, 5), FOOTER])
    if draw.random() < 0.3:  # UTF-8 that somebody took for another encoding
        text = text.replace('"', "\u201d").replace("'", "\u2019").encode().decode("latin-1")
    return text


def spam(draw: random.Random) -> str:
    """A page of keywords, or of what is no text."""
    if draw.random() < 0.5:
        return "\n".join(" ".join(draw.choices(KEYWORDS.split(), k=12)) for _ in range(12))
    return "\n".join("".join(draw.choices("0123456789abcdef", k=70)) for _ in range(12))


def dirty(clean: Sequence[str], draw: random.Random) -> list[str]:
    """Pages of these stories: a sixth of them comes five times, hardly changed, and every fifth page is none."""
    pages = []
    for number, story in enumerate(clean):
        pages += [page(story, draw) for _ in range(5 if number % 6 == 0 else 1)]
    pages += [spam(draw) for _ in range(len(pages) // 5)]
    draw.shuffle(pages)
    return pages


def cleaned(pages: Sequence[str]) -> list[str]:
    """What `openbook data prepare` leaves of them."""
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw.jsonl", Path(folder) / "corpus"
        raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in pages), encoding="utf-8")
        cleaning = Cleaning(repair=Repair(quotes=True), language=None, c4=C4())
        recipe = Corpus(
            out=str(out), sources=(Source(name="web", paths=(str(raw),)),), cleaning=cleaning,
            duplicates=Duplicates(paragraphs=None, boilerplate=20), tokens=None,
        )  # fmt: skip
        build(recipe, executor=Here())
        files = sorted((out / "text").rglob("*.jsonl"))
        return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def ids_of(texts: Sequence[str]) -> Tensor:
    """Bytes, a zero between texts."""
    return torch.tensor(list("\0".join(texts).encode("utf-8")))


def held_out(texts: Sequence[str], rows: int) -> Batch:
    """Rows of clean stories, one after the other."""
    ids = ids_of(texts)[: rows * LENGTH + 1]
    return Batch(ids=ids[:-1].reshape(rows, LENGTH), targets={"language": ids[1:].reshape(rows, LENGTH)})


def loss_on(model: LanguageModel, batch: Batch) -> dict[str, float]:
    """Nats a byte."""
    objective = Language()
    return {"loss": float(objective(model, batch)["language"].total) / objective.counts(batch)["language"]}


def model_of(dim: int, layers: int) -> spec.Model:
    """A small decoder of bytes."""
    return decoder(256, [attention(dim)] * layers, dim=dim, ffn=spec.MLP(hidden=3 * dim), context=LENGTH)


def run(quick: bool, seed: int) -> Results:
    """The loss on clean text over tokens, of raw and cleaned text and two sizes of model."""
    steps, every, sizes = (140, 14, (64,)) if quick else (1600, 80, (96, 72))
    every_story = stories()
    random.Random(seed).shuffle(every_story)
    held, source = held_out(every_story[:150], 32 if quick else 256), every_story[150 : 400 if quick else 2400]
    pages = dirty(source, random.Random(seed))
    kept = cleaned(pages)
    pools = {"raw": ids_of(pages), "cleaned": ids_of(kept)}
    found: Results = {
        "tokens": [], "loss": {}, "pages": len(pages), "stories": len(source), "documents": len(kept),
        "bytes": {name: len(ids) for name, ids in pools.items()}, "parameters": {},
    }  # fmt: skip
    look = partial(loss_on, batch=held)
    ways = {"raw": sizes[0], **{"cleaned" + ", smaller" * (dim < sizes[0]): dim for dim in sizes}}
    for name, dim in ways.items():
        rows = Made(windows(pools[name.partition(",")[0]], LENGTH), seed)
        model, watch = train(model_of(dim, 2), rows, steps, batch=ROWS, seed=seed, every=every, look=look)
        found["loss"][name] = [seen["loss"] for seen in watch.seen]
        found["tokens"] = [seen["step"] * ROWS * LENGTH for seen in watch.seen]
        found["parameters"][name] = sum(p.numel() for p in model.parameters())
    return found


def claims(results: Results) -> dict[str, bool]:
    """What cleaning is worth."""
    raw, clean = results["loss"]["raw"], results["loss"]["cleaned"]
    reached = next((t for t, loss in zip(results["tokens"], clean, strict=True) if loss <= raw[-1]), None)
    part = 1.0 if reached is None else reached / results["tokens"][-1]
    stories, documents = results["stories"], results["documents"]
    found = {
        f"the steps leave {documents:,} documents of {results['pages']:,} pages, of {stories:,} stories": (
            0.9 * stories < documents < 1.1 * stories
        ),
        f"cleaned text gives the lower loss ({clean[-1]:.3f} nats a byte; raw {raw[-1]:.3f})": clean[-1]
        < raw[-1] - 0.02,
        f"it reaches the raw text's loss with {part:.0%} of the tokens": part < 0.9,
    }
    if "cleaned, smaller" in results["loss"]:
        small = results["loss"]["cleaned, smaller"][-1]
        size = results["parameters"]["cleaned, smaller"] / results["parameters"]["raw"]
        found[f"and a model with {size:.0%} of the parameters does, too ({small:.3f})"] = small < raw[-1] and size < 0.8
    return found


def draw(results: Results, figure: Any) -> None:
    """Loss on clean text over tokens."""
    curves = {name: (results["tokens"][1:], values[1:]) for name, values in results["loss"].items()}
    axes = figure.add_subplot()
    title = "The same model, the same tokens"
    lines(axes, curves, xlabel="tokens learned from", ylabel="loss on clean stories (nats a byte)", title=title)
    axes.axhline(results["loss"]["raw"][-1], color="#9ca3af", linestyle="--", linewidth=1)
