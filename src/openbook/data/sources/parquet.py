"""`.parquet`: a document a row; only the wanted columns are read, a few rows at once.

A file is parted between its row groups. Its directory is at its end: of one that was cut, nothing can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from openbook.data.sources.columns import Columns, plain
from openbook.data.sources.document import SMALL, Document, Refused
from openbook.data.sources.stream import Source
from openbook.errors import MissingExtra, nearest

ROWS = 256  # that are read at once
BUFFER = 1 << 20  # bytes of a column that are read at once


def starts(path: Path) -> list[int]:
    """Where the row groups of a file begin; none of a file that is damaged, which reading it will tell."""
    try:
        with path.open("rb") as raw:
            return _starts(_open(raw).metadata)
    except Refused:
        return []


def read(source: Source) -> Iterator[Document]:
    """The rows of a block's row groups. `line` counts the rows of the file, `at` is where the row group begins."""
    try:
        if not source.exact:
            raise Refused("packed", "a packed Parquet file, which packs its columns by itself: unpack it first.")
        file = _open(source.raw)
        columns = _wanted(source.columns, file.schema_arrow, file.metadata)
    except Refused as refused:
        source.refuse(refused)
        return
    begins = _starts(file.metadata)
    row = 0
    for group, (at, end) in enumerate(zip(begins, [*begins[1:], source.block.size], strict=True)):
        rows = file.metadata.row_group(group).num_rows
        if source.block.start <= at < source.block.end:
            yield from _group(source, file, group, columns, row, (at, end))
        row += rows


def _group(
    source: Source, file: Any, group: int, columns: list[str], before: int, place: tuple[int, int]
) -> Iterator[Document]:
    """The rows of one row group, behind `before` others in the file."""
    at, end = place
    rows = file.metadata.row_group(group).num_rows
    done = 0
    try:
        batches = file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns, use_threads=False)
        for batch in batches:
            for record in _records(batch):
                done += 1
                try:
                    if isinstance(record, Refused):
                        raise record
                    document = source.document(record, before + done, at, at + (end - at) * done // rows)
                    if document is not None:
                        yield document
                except Refused as refused:
                    source.refuse(refused, before + done, at)
    except (ValueError, OSError) as error:  # Arrow's errors are among them
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = f"row group {group} is damaged from its row {done + 1} on, of {rows}: {_brief(error)}."
        source.refuse(Refused("cut or damaged", why), before + done + 1, at)


def _records(batch: Any) -> Iterator[dict[str, Any] | Refused]:
    """The rows of a batch; a row that has bytes for text that are none is given as what is said of it."""
    dates = [field.name for field in batch.schema if _library()[0].types.is_temporal(field.type)]
    try:
        for record in batch.to_pylist():
            yield {**record, **{name: plain(record[name]) for name in dates}} if dates else record
        return
    except UnicodeDecodeError:
        pass
    for row in range(batch.num_rows):
        try:
            yield {name: plain(batch.column(name)[row].as_py()) for name in batch.schema.names}
        except UnicodeDecodeError as error:
            yield Refused("not UTF-8", f"a string that is not UTF-8 text: {error.reason}.")


def _wanted(columns: Columns, schema: Any, metadata: Any) -> list[str]:
    """The columns to read. Raises `Refused` where one of the text's is not there, or cannot be text."""
    has = ", ".join(f"{field.name} {field.type}" for field in schema)
    texts = []
    for asked in columns.asked:
        name = asked.removesuffix("?")
        kind = _kind(schema, name)
        if kind is None and name == asked:
            why = f"no column {name!r}.{nearest(name, schema.names)} Wanted: {name} string. It has: {has}."
            raise Refused(f"no field {name!r}", why)
        if kind is not None:
            if not (_is_text(kind) or (_is_small(kind) and len(columns.asked) > 1)):
                why = f"column {name!r} is {kind}, not a string. Wanted: {name} string. It has: {has}."
                raise Refused(f"field {name!r} is {kind}", why)
            texts.append(name)
    if columns.keep is None:
        kept = [name for name in schema.names if _is_small(_kind(schema, name)) and _usual(metadata, name) <= SMALL]
    else:
        kept = [name for name in columns.keep if _kind(schema, name) is not None]
    return list(dict.fromkeys([*texts, *kept, *([columns.id] if columns.id else [])]))


def _kind(schema: Any, name: str) -> Any:
    """The type of a column, None where there is none: the whole name first, then inward by its dots."""
    place = schema.get_field_index(name)
    if place >= 0:
        return schema.field(place).type
    outer, _, inner = name.partition(".")
    place = schema.get_field_index(outer)
    if not inner or place < 0:
        return None
    kind = schema.field(place).type
    return _kind(_library()[0].schema(list(kind)), inner) if _library()[0].types.is_struct(kind) else None


def _is_text(kind: Any) -> bool:
    types = _library()[0].types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(is_it(kind) for is_it in (types.is_string, types.is_large_string, types.is_string_view))


def _is_small(kind: Any) -> bool:
    types = _library()[0].types
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_date, types.is_timestamp)
    return _is_text(kind) or any(is_it(kind) for is_it in numbers)


def _usual(metadata: Any, name: str) -> float:
    """Bytes of a column in a row, on average."""
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    chunks = (group.column(column) for group in groups for column in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == name) / max(1, metadata.num_rows)


def _starts(metadata: Any) -> list[int]:
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return [min(_begin(group.column(column)) for column in range(group.num_columns)) for group in groups]


def _begin(chunk: Any) -> int:
    dictionary = chunk.dictionary_page_offset
    return int(min(chunk.data_page_offset, dictionary) if dictionary else chunk.data_page_offset)


def _open(raw: BinaryIO) -> Any:
    """A file by its directory. Raises `Refused`."""
    try:
        return _library()[1].ParquetFile(raw, buffer_size=BUFFER, pre_buffer=False)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        why = f"it is not a whole Parquet file ({_brief(error)}): it was cut or damaged; fetch it again."
        raise Refused("cut or damaged", why) from error


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


@lru_cache
def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", "Reading .parquet files") from error
    return pyarrow, parquet
