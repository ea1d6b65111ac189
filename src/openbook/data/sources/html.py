"""`.html`: the main text of a page, without navigation, scripts and styles (`markup.py`).

What a page says of itself goes into `meta`: title, language, license, url.
"""

from __future__ import annotations

from collections.abc import Iterator

from openbook.data.sources.document import SMALL, Document, Refused
from openbook.data.sources.markup import LONGEST_PAGE, page
from openbook.data.sources.stream import Source


def read(source: Source) -> Iterator[Document]:
    """The page that a file is."""
    try:
        data = source.whole(min(LONGEST_PAGE, source.options.longest_line))
        if b"\0" in data[:SMALL]:
            raise source.zero_byte(data.index(b"\0"), data)
        text, meta = page(data)
    except Refused as refused:
        source.refuse(refused)
        return
    if text:
        yield Document(text, source.path, 1, source.position(source.block.end), source.columns.kept(meta))
