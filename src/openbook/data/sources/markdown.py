"""`.md`: plain text as it is written; the front matter, lines between `---` at its head, goes into `meta` instead.

Only what every such head has is understood: lines `key: value`. A head with anything else at its outermost level is
no front matter, and stays in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from openbook.data.sources import text
from openbook.data.sources.document import SMALL, Document
from openbook.data.sources.stream import Source

HEAD = re.compile(r"---[ \t]*\n(.{0,16384}?\n)?(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
LINE = re.compile(r"(?:([A-Za-z_][\w.\- ]{0,63}):(?:[ \t]+(.*))?|[ \t]+.*|- .*|#.*|[ \t]*)")


def read(source: Source) -> Iterator[Document]:
    """The documents of a file, the first without its front matter."""
    for document in text.read(source):
        found = _head(document.text) if not document.at else None
        if found is None:
            yield document
        elif body := document.text[found[0] :].lstrip("\n"):
            yield replace(document, text=body, meta=source.columns.kept(found[1]))


def _head(content: str) -> tuple[int, dict[str, str]] | None:
    """Where the text begins behind its front matter, and what that says."""
    head = HEAD.match(content)
    if head is None:
        return None
    lines = [LINE.fullmatch(line) for line in (head[1] or "").splitlines()]
    if not all(lines) or not any(line and line[1] for line in lines):
        return None
    pairs = ((line[1], (line[2] or "").strip()) for line in lines if line and line[1])
    return head.end(), {key: _bare(value) for key, value in pairs if 0 < len(value) <= SMALL}


def _bare(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
