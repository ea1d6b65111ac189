"""Megabytes a second of each step of cleaning, one thread, beside the plain way to do the same.

    python bench/filters.py [--rounds 5] [--megabytes 12] [--files A.jsonl,B.jsonl] [--out runs/bench]

Every step of data/clean over whole documents, on real text: the archive's books and encyclopedia pages (OPENBOOK_DATA),
or the project's own `corpus/`. Beside repair: ftfy on every document. Beside the rules: the reference in Python. Beside
the language: py3langid on the whole document. `rules and c4` is all published rules together. Models of good text are
learned from the first megabytes of the same file. Bytes are those of the UTF-8 text; seconds are the processor's, so
that other work on the machine does less harm.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _harness import Case, Contender, Results, Round, arguments, compare_cases, report, serve_cases
from openbook.data.clean import C4, Language, Perplexity, Quality, Repair, Rules, Scrub, classify, grams
from openbook.data.documents import Document
from openbook.data.steps import Step

OWN = Path(__file__).parents[1] / "corpus"
PEERS = {"repair": "ftfy", "rules": "reference", "language": "py3langid"}
STEPS = ("repair", "language", "rules", "c4", "rules and c4", "perplexity", "quality", "scrub", "all")


def files(given: str) -> list[Path]:
    """The text to measure on."""
    if given:
        return [Path(name) for name in given.split(",")]
    folder = Path(os.environ.get("OPENBOOK_DATA", "")) / "pretrain"
    found = [folder / f"{name}.jsonl" for name in ("classic_books", "wikipedia_pages")]
    return found if all(map(Path.exists, found)) else [OWN / "classics.jsonl", OWN / "tinystories.jsonl"]


def texts(path: Path, megabytes: float) -> Iterator[str]:
    """Whole documents from the beginning of a file, until there is enough."""
    size = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if size >= megabytes * 1e6:
                return
            text = json.loads(line)["text"]
            size += len(text.encode())
            yield text


def made(name: str, some: list[str]) -> list[Step]:
    """The steps of a case."""
    pieces = [text[at : at + 5000] for text in some for at in range(0, min(len(text), 100_000), 5000)][:400]
    folder = Path(tempfile.mkdtemp())
    single: dict[str, Callable[[], list[Step]]] = {
        "repair": lambda: [Repair()],
        "language": lambda: [Language()],
        "rules": lambda: [Rules()],
        "c4": lambda: [C4()],
        "rules and c4": lambda: [Rules(), C4()],
        "scrub": lambda: [Scrub()],
    }
    if name in single:
        return single[name]()
    if name in ("perplexity", "all"):
        grams.train(pieces).save(folder / "grams.npz")
    if name in ("quality", "all"):
        mixed = random.Random(0)
        worse = ["".join(mixed.sample(words := piece.split(" "), len(words))) for piece in pieces]
        classify.train(pieces, worse)[0].save(folder / "quality.npz")
    perplexity, quality = Perplexity(model=folder / "grams.npz"), Quality(model=folder / "quality.npz")
    if name == "all":
        return [
            *(step for one in single if one not in ("rules and c4",) for step in single[one]()),
            perplexity,
            quality,
        ]
    return [perplexity if name == "perplexity" else quality]


def peer(name: str) -> Callable[[str], object]:
    """The plain way."""
    if name == "ftfy":
        import ftfy

        return lambda text: ftfy.fix_text(text, fix_character_width=False, uncurl_quotes=False)
    if name == "py3langid":
        import py3langid

        return py3langid.classify
    from openbook.data.clean.statistics import count_reference

    return count_reference


def setup(which: str) -> tuple[Case, dict[str, Any]]:
    """A contender: ours or the peer's name, the case's name, megabytes, file."""
    who, name, megabytes, path = which.split("|")
    some = list(texts(Path(path), float(megabytes)))
    works: list[Callable[[Document], object]]
    if who == "ours":
        works = list(made(name, some))
    else:
        some = some[:3] if len(some[0]) > 100_000 else some[:60]  # slow: a part will do
        plain = peer(who)
        works = [lambda document: plain(document.text)]
    given = [Document(text, Path(path), 1, 1) for text in some]
    amount = sum(len(text.encode()) for text in some) / 1e6

    def case(_: str) -> Round:
        start = time.process_time()
        for document in given:
            for work in works:  # each on the text as it came: none waits for what another removes
                work(document)
        return Round(amount, time.process_time() - start)

    case("")
    return case, {"documents": len(some), "megabytes": round(amount, 2)}


def main(options: Any) -> None:
    """All steps, one after the other."""
    cases: dict[str, Results] = {}
    for path in files(options.files):
        for name in options.steps.split(","):
            contenders = {}
            for who in ("ours", *([PEERS[name]] if name in PEERS else [])):
                which = f"{who}|{name}|{options.megabytes}|{path}"
                contenders[who] = Contender(["--child", which], environment={"OMP_NUM_THREADS": "1"})
            cases[f"{name}, {path.stem}"] = compare_cases(contenders, [""], options.rounds)[""]
    report("filters", "Steps of cleaning", "MB per processor second, one thread", cases, options.out, "best")


if __name__ == "__main__":
    options = arguments(__doc__ or "", rounds=5, megabytes=12.0, files="", steps=",".join(STEPS))
    if options.child:
        serve_cases(setup, options.child)
    else:
        main(options)
