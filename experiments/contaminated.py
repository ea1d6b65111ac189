"""A test that stands in the training text: the score rises, and the decontamination step finds every planted item.

Question: what does leaked evaluation text do to a score, and does cleaning undo it? Method: questions about made-up
people ("… the baker of Velora lived by the sea and was called Tidemo …"), four surnames to choose from; nobody can know
the answer. Half of the items are planted into bundled stories, a few times each, half are not. The same small model of
words learns from the stories as they are, with the planted items, and with those after the step of `openbook data
decontaminate`. Expected (Brown et al. 2020, appendix C; Jiang et al. 2024): only the leaked items are answered, and
only before the step, which finds all of them by their runs of 13 words and none of the others.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.clean_data import stories
from experiments.lab import COLOURS, Made, Results, attention, decoder, train, windows
from openbook.data.dedupe.contamination import Decontaminate, Index
from openbook.data.dedupe.evaluation import Evaluation
from openbook.data.documents import Document
from openbook.nn import spec
from openbook.nn.model import LanguageModel

LENGTH, ROWS = 32, 16
OPTIONS = 4
WAYS = ("as they are", "with planted items", "decontaminated")


@dataclass(frozen=True)
class Item:
    """A question, and names of which the first is right."""

    question: str
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.question} {self.names[0]}."


def word(draw: random.Random) -> str:
    """A made-up name of six letters."""
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3)).capitalize()


def make_items(count: int, draw: random.Random) -> list[Item]:
    """Questions whose wrong names are right in other questions: knowing which names there are does not help."""
    names = [word(draw) for _ in range(count)]
    who = ["baker", "farmer", "teacher", "sailor", "singer", "doctor", "painter", "miller"]
    made = []
    for number, name in enumerate(names):
        others = draw.sample(names[:number] + names[number + 1 :], OPTIONS - 1)
        town, first = word(draw), word(draw)
        question = f"People say that the {draw.choice(who)} of {town} lived by the sea and was called {first}"
        made.append(Item(question, (name, *others)))
    return made


def ids_of(texts: Sequence[str], number: Mapping[str, int]) -> Tensor:
    """The words of texts as ids, 0 between texts."""
    return torch.tensor([number.get(found, 0) for text in texts for found in [*words_of(text), ""]])


def words_of(text: str) -> list[str]:
    """Words and marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def plant(texts: Sequence[str], items: Sequence[Item], copies: int, draw: random.Random) -> list[str]:
    """The texts with each item between two paragraphs of so many of them."""
    planted = [text.split("\n\n") for text in texts]
    for item in items:
        for paragraphs in draw.sample(planted, copies):
            paragraphs.insert(draw.randint(1, len(paragraphs)), item.text)
    return ["\n\n".join(paragraphs) for paragraphs in planted]


def decontaminate(texts: Sequence[str], items: Sequence[Item]) -> tuple[list[str], list[int]]:
    """The texts without what they share with the items, and the numbers of the items that were found."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "towns.jsonl"
        path.write_text("".join(json.dumps({"text": item.text}) + "\n" for item in items), encoding="utf-8")
        index = Index.build([Evaluation("towns", path)], Path(folder) / "index")
        step, found, kept = Decontaminate(index, margin=0, shortest=1, most=100), set(), []
        for number, text in enumerate(texts):
            document = Document(text, Path("stories"), number + 1, 0)
            found.update(index.item(item).number - 1 for part in index.find(text) for item in part.items)
            left = step(document)
            kept += [left.text] if isinstance(left, Document) else []
        return kept, sorted(found)


@torch.no_grad()
def right(model: LanguageModel, items: Sequence[Item], number: Mapping[str, int]) -> float:
    """How often the right name is the likeliest of the four behind its question."""
    asked = torch.stack([ids_of([item.question], number)[:-1] for item in items])
    names = torch.tensor([[number[name] for name in item.names] for item in items])
    said = model(asked)[:, -1].gather(1, names)
    return float((said.argmax(1) == 0).float().mean())


def score(
    model: LanguageModel, leaked: Sequence[Item], others: Sequence[Item], number: Mapping[str, int]
) -> dict[str, float]:
    """Of both halves."""
    return {"leaked": right(model, leaked, number), "not leaked": right(model, others, number)}


def run(quick: bool, seed: int) -> Results:
    """The scores of both halves over training, three ways."""
    steps, dim, count, texts, copies = (160, 48, 80, 60, 8) if quick else (500, 64, 240, 400, 8)
    draw = random.Random(seed)
    source = draw.sample(stories(), texts)
    leaked, others = make_items(count // 2, draw), make_items(count // 2, draw)
    items = [*leaked, *others]
    dirty = plant(source, leaked, copies, draw)
    kept, caught = decontaminate(dirty, items)
    found: Results = {
        "leaked": len(leaked), "caught": sum(number < len(leaked) for number in caught),
        "falsely": sum(number >= len(leaked) for number in caught),
        "kept": sum(map(len, kept)) / sum(map(len, source)), "steps": [], "right": {},
    }  # fmt: skip
    words = sorted({word for text in [*dirty, *(item.text for item in items)] for word in words_of(text)})
    number = {word: place for place, word in enumerate(words, start=1)}
    model = decoder(len(words) + 1, [attention(dim)] * 2, dim=dim, ffn=spec.MLP(hidden=2 * dim), context=LENGTH)
    look = partial(score, leaked=leaked, others=others, number=number)
    for way, pool in zip(WAYS, (source, dirty, kept), strict=True):
        rows = Made(windows(ids_of(pool, number), LENGTH), seed)
        _, watch = train(model, rows, steps, batch=ROWS, seed=seed, every=steps // 8, look=look)
        found["steps"] = [seen["step"] for seen in watch.seen]
        found["right"][way] = {half: [seen[half] for seen in watch.seen] for half in ("leaked", "not leaked")}
    return found


def claims(results: Results) -> dict[str, bool]:
    """What a leak does, and what is left of it."""
    plain, leak, mended = (results["right"][way] for way in WAYS)
    known, unknown = leak["leaked"][-1], leak["not leaked"][-1]
    chance = max(plain["leaked"][-1], mended["leaked"][-1], unknown)
    return {
        f"the step finds {results['caught']} of {results['leaked']} planted items": (
            results["caught"] == results["leaked"]
        ),
        f"and none that was not planted ({results['falsely']})": results["falsely"] == 0,
        f"it leaves the stories ({results['kept']:.0%} of their length)": 0.9 < results["kept"] < 1.01,
        f"leaked items are answered ({known:.0%}; chance 25%)": known > 0.55,
        f"others are not ({unknown:.0%}), and without the leak none is "
        f"({plain['leaked'][-1]:.0%}; decontaminated {mended['leaked'][-1]:.0%})": known > chance + 0.15,
    }  # fmt: skip


def draw(results: Results, figure: Any) -> None:
    """Right answers over steps."""
    axes = figure.add_subplot()
    for colour, (way, halves) in zip(COLOURS, results["right"].items(), strict=False):
        for half, values in halves.items():
            style = "-" if half == "leaked" else ":"
            axes.plot(results["steps"], values, style, color=colour, label=f"{way}, {half}", linewidth=1.6)
    axes.axhline(1 / OPTIONS, color="#9ca3af", linestyle="--", linewidth=1)
    axes.grid(alpha=0.25)
    axes.set(xlabel="step", ylabel="right answers", title="Stories with a test in them", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=9)
