"""The first stage, block by block: read documents, put each through the steps, keep what is left and its marks.

A mark is what later stages compare instead of the text: digests, signatures, hashes of paragraphs.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.data.corpus.contaminated import Counter
from openbook.data.corpus.marks import Marker
from openbook.data.corpus.plan import Part
from openbook.data.corpus.recipe import Cleaning, Corpus, Source
from openbook.data.corpus.tally import Ledger, size
from openbook.data.corpus.work import Lines, record_of, write_arrays, write_ledger
from openbook.data.documents import Document
from openbook.data.sources.blocks import Bad, read_block
from openbook.data.steps import Removed, Step

LISTED = 200  # bad places of a block that are listed; all are counted
TOGETHER = 1 << 22  # characters whose marks are made at once


@dataclass(frozen=True, slots=True)
class Job:
    """One part to clean."""

    folder: Path
    part: Part
    source: Source
    recipe: Corpus


def clean_part(job: Job) -> int:
    """Clean one part into `folder`/clean; the bytes of text that are left. Does nothing where that is done."""
    stem = job.folder / "clean" / job.part.name
    if stem.with_suffix(".json").exists():
        return 0
    ledger, bad = Ledger(), _Listed()
    steps = [step for step in steps_of(job.source.cleaning or job.recipe.cleaning) if step.name not in job.source.skip]
    marker, runs = Marker(job.recipe.duplicates), Counter(job.folder)
    about: collections.Counter[str] = collections.Counter()
    left = 0
    with Lines(stem.with_suffix(".jsonl")) as lines:
        for documents in _groups(_through(job, steps, ledger, bad)):
            marker.add(documents)
            runs.add(documents)
            for document in documents:
                lines.add(record_of(document, job.source.name))
                left += size(document.text)
                about[f"language {document.meta.get('language', '')}"] += 1
                about[f"length {size(document.text).bit_length()}"] += 1
    write_arrays(stem.with_suffix(".npz"), marker.arrays() | runs.arrays())
    write_ledger(stem.with_suffix(".json"), ledger, {"bad": bad.to_tree(), "about": dict(about)})
    return left


def _through(job: Job, steps: Sequence[Step], ledger: Ledger, bad: _Listed) -> Iterator[Document]:
    """The documents of a part that every step kept."""
    name = job.source.name
    read = ledger.tally(name, "read")
    tallies = [ledger.tally(name, step.name) for step in steps]
    for document in read_block(
        job.part.block, job.source.columns, job.source.separator, bad.add, encoding=job.source.encoding
    ):
        read.came(document)
        for step, tally in zip(steps, tallies, strict=True):
            tally.came(document)
            result = step(document)
            if isinstance(result, Removed):
                tally.remove(document, result.reason, result.detail)
                break
            if result.text is not document.text and result.text != document.text:
                tally.change(document, result)
            document = result
        else:
            yield document


@functools.lru_cache(maxsize=4)
def steps_of(cleaning: Cleaning) -> tuple[Step, ...]:
    """The steps, made once in a process: some load a model or an index."""
    return cleaning.build()


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    length = 0
    for document in documents:
        group.append(document)
        length += len(document.text)
        if length >= TOGETHER:
            yield group
            group, length = [], 0
    if group:
        yield group


class _Listed:
    """What could not be read: all counted, the first ones listed."""

    def __init__(self) -> None:
        self.count = 0
        self.listed: list[dict[str, Any]] = []

    def add(self, bad: Bad) -> None:
        self.count += not bad.note
        if len(self.listed) < LISTED:
            self.listed.append(listed(bad))

    def to_tree(self) -> dict[str, Any]:
        return {"count": self.count, "listed": self.listed}


def listed(bad: Bad) -> dict[str, Any]:
    """A bad place as the report lists it."""
    return {"path": str(bad.path), "line": bad.line, "at": bad.at, "why": bad.why}
