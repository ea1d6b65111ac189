"""The last stage on text, block by block: the documents that comparing left, without the paragraphs it took."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from openbook.data.corpus.contaminated import Cutter
from openbook.data.corpus.marks import Chooser
from openbook.data.corpus.plan import Part
from openbook.data.corpus.recipe import Corpus
from openbook.data.corpus.tally import Ledger, size
from openbook.data.corpus.work import Lines, read_arrays, read_records, record_of, write_ledger


@dataclass(frozen=True, slots=True)
class Job:
    """One part to write."""

    folder: Path
    part: Part
    source: str
    recipe: Corpus


def write_part(job: Job) -> int:
    """Write what is left of one part into `folder`/text; its bytes. Does nothing where that is done."""
    done = job.folder / "text" / f"{job.part.name}.json"
    if done.exists():
        return 0
    ledger = Ledger()
    choose = Chooser(read_arrays(job.folder / "choice" / f"{job.part.name}.npz"), job.recipe.duplicates.overlap)
    cutter = Cutter(job.folder, job.recipe.contamination)
    tally = functools.partial(ledger.tally, job.source)
    left = documents = 0
    path = job.folder / "text" / job.source / f"{job.part.name}.jsonl"
    with Lines(path) as lines:
        for row, document in enumerate(read_records(job.folder / "clean" / f"{job.part.name}.jsonl")):
            kept = choose(row, document, tally)
            kept = kept and cutter(kept, tally)
            if kept is not None:
                lines.add(record_of(kept, job.source))
                left += size(kept.text)
                documents += 1
    write_ledger(done, ledger, {"source": job.source, "documents": documents, "bytes": left, **cutter.notes()})
    return left
