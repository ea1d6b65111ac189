"""`.warc`: the pages of a web archive (ISO 28500), as a crawler kept them; `.wet`: such an archive of their texts.

A document is each response with a page of HTML or plain text and a status of success; other records (requests,
pictures, errors) are passed over. `meta` has what the page says of itself, its url and its date.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openbook.data.sources import markup
from openbook.data.sources.document import Document, Refused
from openbook.data.sources.stream import Source
from openbook.data.sources.unpack import Chunked
from openbook.errors import MissingExtra

PAGES = ("text/html", "application/xhtml+xml")


def read(source: Source) -> Iterator[Document]:
    """The pages of an archive; `line` counts its records of these kinds."""
    warc = _library()
    kinds = warc.WarcRecordType.response | warc.WarcRecordType.conversion
    records = warc.ArchiveIterator(Chunked(source.chunks), record_types=kinds, parse_http=False, stream_detect=False)
    number = at = 0
    try:
        for number, record in enumerate(records, 1):
            at = record.stream_pos
            try:
                text, meta = _page(warc, record)
                if text:
                    meta = source.columns.kept({**meta, **_head(record)})
                    yield Document(text, source.path, number, source.position(at + record.content_length), meta, at)
            except Refused as refused:
                source.settle()
                if not source.cut:  # else that was told
                    source.refuse(refused, number, at)
    except (ValueError, OSError) as error:
        source.refuse(Refused("not WARC", f"no web archive from here on: {error}."), number, at)
    source.settle()
    if not number and not source.refused:
        source.refuse(Refused("not WARC", "it is no web archive, or one without pages."))


def _page(warc: Any, record: Any) -> tuple[str, dict[str, str]]:
    """The text of a record and what it says of itself; no text for what is no page. Raises `Refused`."""
    size = record.content_length
    if size > markup.LONGEST_PAGE:  # which fastwarc would take into memory before it knows whether it is there
        raise Refused("too long", f"a record of {size} bytes; a page has {markup.LONGEST_PAGE >> 20} MiB at most.")
    block = record.reader.read(size)
    if len(block) < size:
        raise Refused("cut or damaged", f"the record should have {size} bytes, and has {len(block)}.")
    if not record.is_http:
        text = markup.decoded(block) if (record.headers.get("Content-Type") or "").startswith("text/plain") else ""
        return text.strip(), {}
    answer, body = _answer(warc, block)
    kind = answer.http_content_type or ""
    if not 200 <= (answer.http_headers.status_code or 200) < 300 or b"\0" in body[:1024]:
        return "", {}
    if kind == "text/plain":
        return markup.decoded(body, answer.http_charset).strip(), {}
    return markup.page(body, answer.http_charset) if kind in PAGES else ("", {})


def _answer(warc: Any, block: bytes) -> tuple[Any, bytes]:
    """What a server answered, and the body of that. What it says of its packing is often no longer true."""
    for unpacking in ("all", "none"):
        answer = warc.WarcRecord()
        answer.is_http = True
        answer.set_bytes_content(block)
        try:
            answer.parse_http(auto_decode=unpacking)
            return answer, answer.reader.read(markup.LONGEST_PAGE)
        except (OSError, ValueError) as error:
            fault = error
    raise Refused("not HTTP", f"no answer of a web server: {fault}.")


def _head(record: Any) -> dict[str, str]:
    """What the crawler says of a record."""
    said = {"url": record.headers.get("WARC-Target-URI"), "date": record.headers.get("WARC-Date")}
    return {key: value for key, value in said.items() if value}


def _library() -> Any:
    try:
        from fastwarc import warc
    except ImportError as error:
        raise MissingExtra("fastwarc", "data", "Reading .warc files") from error
    return warc
