"""A corpus without evaluation items: searched, written, with a report of what was found where.

read ──n-grams found in the index──▶ in how many documents each stands ──▶ those in many are ignored
read again ──▶ OUT/documents.jsonl, OUT/report.json, OUT/report.txt
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openbook.data.dedupe.contamination import Decontaminate, Index, Overlaps
from openbook.data.dedupe.corpus import Read, Tell, unread_of, why_none
from openbook.data.dedupe.evaluation import evaluations
from openbook.data.steps import Removed
from openbook.errors import DataError
from openbook.files import atomic_folder, write_atomic, write_json


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for (see `contamination.py`), and what is done about it."""

    n: int = 13
    shortest: int = 8
    common: int = 10
    frequent: int = 50  # phrases of less than 2n words whose n-grams stand in more documents than this are ignored
    fields: tuple[str, ...] = ()  # of the evaluation records; none: all
    action: str = "cut"
    margin: int = 200


def decontaminate(
    read: Read, against: Sequence[str | Path], out: str | Path, search: Search, tell: Tell | None = None
) -> tuple[dict[str, Any], str]:
    """Write the documents that `read` gives (the same ones both times) without what the sets `against` hold.

    Answers the report as JSON and as text. The folder appears when everything is there.
    """
    with atomic_folder(out) as part:
        index = Index.build(
            evaluations(against), part / "index",
            n=search.n, shortest=search.shortest, common=search.common, fields=search.fields,
        )  # fmt: skip
        counts, hit, total = _count(read, index, tell)
        if not total:
            raise DataError(f"There is no document to look into.{why_none(read)}")
        frequent = counts > search.frequent
        index = index.ignore(frequent)
        step = Decontaminate(index, search.action, search.margin)
        overlaps, removed, cut = Overlaps(index), 0, 0
        with (part / "documents.jsonl").open("w", encoding="utf-8") as file:
            for number, document in enumerate(read()):
                if tell:
                    tell("writing", document, number)
                found = index.find(document.text) if number in hit else []
                overlaps.add(document, found)
                left = step.apply(document, found)
                removed += isinstance(left, Removed)
                if not isinstance(left, Removed):
                    cut += len(document.text) - len(left.text)
                    file.write(json.dumps({**left.meta, "text": left.text}, ensure_ascii=False) + "\n")
        report = {
            "search": asdict(search),
            "removed": removed,
            "characters_cut": cut,
            "ignored": int(frequent.sum()),
            "unread": unread_of(read),
            **overlaps.as_json(),
        }
        lost = f"\n{len(report['unread']):,} could not be read: {report['unread'][0]}" if report["unread"] else ""
        text = f"{removed:,} documents removed, {cut:,} characters cut from others\n{overlaps.as_text()}{lost}"
        write_json(part / "report.json", report)
        write_atomic(part / "report.txt", text + "\n")
    return report, text


def _count(read: Read, index: Index, tell: Tell | None) -> tuple[np.ndarray[Any, np.dtype[np.int64]], set[int], int]:
    """In how many documents each n-gram of the index stands; the documents that have one; how many there are."""
    counts, hit, number = np.zeros(len(index), np.int64), set(), -1
    for number, document in enumerate(read()):
        if tell:
            tell("searching", document, number)
        if len(grams := index.grams(document.text)):
            counts[grams] += 1
            hit.add(number)
    return counts, hit, number + 1
