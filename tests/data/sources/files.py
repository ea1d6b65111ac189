"""Small files of every kind, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openbook.data.documents import Bad, Document, read_documents


def read_all(path: Path, **options: Any) -> tuple[list[Document], list[Bad]]:
    """The documents of a file, and the list of what is bad."""
    bad: list[Bad] = []
    return list(read_documents(path, bad=bad.append, **options)), bad


def texts(path: Path, **options: Any) -> list[str]:
    """The texts of a file in which nothing is bad."""
    return [document.text for document in read_documents(path, **options)]


def parquet(table: dict[str, Sequence[object]], rows: int = 2, **options: Any) -> bytes:
    """A table of row groups of `rows` rows."""
    import pyarrow
    from pyarrow import parquet as library

    file = io.BytesIO()
    library.write_table(pyarrow.table(table), file, row_group_size=rows, **options)
    return file.getvalue()


def response(url: str, body: bytes, kind: str = "text/html", status: str = "200 OK", head: str = "") -> bytes:
    """A record of a web archive: what a server answered."""
    answer = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{head}\r\n".encode() + body
    return record("response", url, answer, "application/http; msgtype=response")


def record(name: str, url: str, content: bytes, kind: str = "text/plain") -> bytes:
    """A record of a web archive."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {name}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"
