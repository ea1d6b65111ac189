"""`.csv` and `.tsv`: a table with a header, a document a row. Values may be quoted and have line ends in them."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from openbook.data.sources.document import Document, Refused
from openbook.data.sources.stream import Source


def read_csv(source: Source) -> Iterator[Document]:
    return _read(source, ",")


def read_tsv(source: Source) -> Iterator[Document]:
    return _read(source, "\t")


def _read(source: Source, delimiter: str) -> Iterator[Document]:
    csv.field_size_limit(source.options.longest_line)
    lines = _Lines(source)
    header: list[str] | None = None
    rows = csv.reader(lines.texts(), delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        try:
            row = next(rows, None)
        except csv.Error as error:
            source.refuse(Refused("not a row", f"not a row of a table: {error}."), lines.number, lines.at)
            continue
        if row is None:
            return
        if lines.bad or not row:
            continue
        if header is None:
            header = row
            continue
        try:
            if len(row) != len(header):
                why = f"a row of {len(row)} values under a header of {len(header)}: {', '.join(header[:12])}."
                raise Refused("not a row", why)
            named = source.columns.named
            record = {name: value for name, value in zip(header, row, strict=True) if value or name in named}
            document = source.document(record, lines.number, lines.at, source.position(lines.end))
            if document is not None:
                yield document
        except Refused as refused:
            source.refuse(refused, lines.number, lines.at)


class _Lines:
    """The lines that `csv` asks for, and where the row that it makes of them begins."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.end = 0
        self.begin()

    def begin(self) -> None:
        """The next line begins a row."""
        self.number = self.at = -1
        self._refused = self.source.refused

    @property
    def bad(self) -> bool:
        """Whether a line of the row could not be read."""
        return self.source.refused > self._refused

    def texts(self) -> Iterator[str]:
        for number, at, line in self.source.whole_lines(self.source.options.longest_line):
            if self.at < 0:
                self.number, self.at = number, at
            self.end = at + len(line)
            try:
                text = self.source.decode(line)
            except Refused as refused:
                self.source.refuse(refused, number, at)
                text = "\n"
            yield text
