"""A small dirty corpus, whose every fault is known: what the tests of corpora share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openbook.config import from_tree
from openbook.data.corpus.recipe import Corpus
from tests.data.tiny import SLICE

QUESTION = "Which of the seven lanterns did the keeper hide under the blue stairs before the ships came home in spring"
STORIES = [json.loads(line)["text"] for line in SLICE.read_text(encoding="utf-8").splitlines()]


def prose(number: int) -> str:
    """A clean document: a real story."""
    return STORIES[number]


def dirty(folder: Path) -> tuple[Path, Path]:
    """Two sources and an evaluation set: (folder of the text, evaluation file)."""
    text, tests = folder / "text", folder / "tests"
    text.mkdir(parents=True)
    tests.mkdir()
    records: list[Any] = [{"text": prose(n), "title": f"number {n}"} for n in range(30)]
    records.append({"text": prose(3), "title": "a copy"})
    records.append({"text": prose(5).replace(" the ", " that ", 2), "title": "nearly a copy"})
    records.append({"text": prose(40) + "\n\n" + prose(7).split("\n\n")[1], "title": "quotes a paragraph"})
    records.append({"text": "buy now " * 200, "title": "spam"})
    records.append({"text": prose(41).replace(" a ", " un été ").replace("é", "Ã©"), "title": "decoded wrongly"})
    records.append({"text": f"{prose(42)}\n\n{QUESTION}, nobody knows.\n\n{prose(43)}", "title": "holds a question"})
    lines = [json.dumps(record) for record in records]
    lines[10:10] = ['{"text": "cut', '{"title": "no text here"}']
    (text / "pages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (text / "books.txt").write_text("\n<|endoftext|>\n".join(prose(n) for n in range(50, 60)), encoding="utf-8")
    (tests / "quiz.jsonl").write_text(
        json.dumps({"question": QUESTION}) + "\n" + json.dumps({"question": prose(99)[:200]}) + "\n", encoding="utf-8"
    )
    return text, tests / "quiz.jsonl"


def recipe(folder: Path, **changes: Any) -> Corpus:
    """A recipe over the dirty corpus; it writes `folder`/out."""
    text, tests = folder / "text", folder / "tests"
    if not text.exists():
        dirty(folder)
    tree: dict[str, Any] = {
        "out": str(folder / "out"),
        "sources": [
            {"name": "pages", "paths": [str(text / "pages.jsonl")], "licence": "CC0", "weight": 2.0},
            {"name": "books", "paths": [str(text / "books.txt")]},
        ],
        "contamination": {"against": [str(tests)]},
        "tokens": {"vocab": 400, "held_out": 0.1},
    }
    return from_tree(Corpus, tree | changes, source="the test")
