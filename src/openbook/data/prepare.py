"""Documents → token ids → shards on disk, once; training then only reads.

    documents ──cut──▶ pieces ──encode in parallel──▶ ids ──▶ .NAME.part/tokens-00000.bin … ──rename──▶ NAME/

All work is done in a hidden folder beside the target, which takes the target's name when everything is there: the
target is whole or absent. Each finished shard is recorded in `progress.json`; after a crash or a kill the same command
goes on behind the last finished shard, and the result is the same, byte for byte, as without the interruption.

Documents that are long for their corpus are cut into pieces, at a blank line where there is one, so that a single
book too has a part that can be held out. The pieces that are trained on are joined again when they are read (see
`Shards.spans`). A tokenizer that puts a space before a text puts it before each piece.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openbook.data.documents import SEPARATOR, Paths, find_files, read_documents
from openbook.data.encoding import Encoded, Encoder, Piece, encode
from openbook.data.shards import (
    BEGINS,
    ENDS,
    FORMAT,
    MANIFEST,
    VERSION,
    Shards,
    fingerprint,
    names,
    origins_name,
    read_manifest,
    sha256,
)
from openbook.data.writing import ShardWriter
from openbook.errors import DataError, OpenbookError, OpenbookWarning, UsageError
from openbook.files import explain_os_error, read_json, sync_folder, write_json

PROGRESS = "progress.json"
BATCH = 1 << 20  # characters that are encoded at once


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the preparation is."""

    bytes: int  # of the files on disk, read
    bytes_total: int
    documents: int
    tokens: int
    file: Path


def prepare(
    paths: Paths,
    tokenizer: Encoder,
    out: str | Path,
    *,
    field: str = "text",
    separator: str = SEPARATOR,
    held_out: float = 0.01,
    shard_tokens: int = 1 << 25,
    overwrite: bool = False,
    longest_line: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Shards:
    """Encode all documents under `paths` (see `documents.py`) into the folder `out`, and open it.

    A document's ids are bos (if the tokenizer has one), its text, eos (if it has one); special tokens in the text stay
    text. `held_out` is the part of the text, chosen by hash, that is kept from training. A folder that already holds
    exactly this is opened as it is; one that holds something else is an error unless `overwrite`. `longest_line` is as
    in `read_documents`. Raises `DataError` for text that cannot be read, `OpenbookError` when the disk is full or
    read-only (run again to go on).
    """
    if not 0 <= held_out <= 0.5:
        raise UsageError(f"`held_out` is a part of the text from 0 to 0.5: got {held_out}.")
    if not 1 <= shard_tokens < 1 << 31:
        raise UsageError(f"`shard_tokens` must be from 1 to {(1 << 31) - 1}: got {shard_tokens}.")
    out = Path(out).expanduser().absolute()
    files = find_files(paths)
    done = _earlier(out)
    begun = _recorded(_staging(out))
    known = [task["sources"] for task in (done, begun["task"] if begun else None) if task is not None]
    sources = _sources(files, [source for listed in known for source in listed])
    task = {
        "format": FORMAT, "version": VERSION,
        "tokenizer": tokenizer.fingerprint, "vocab": tokenizer.vocab, "bos": tokenizer.bos, "eos": tokenizer.eos,
        "dtype": "<u2" if tokenizer.vocab <= 1 << 16 else "<u4",
        "field": field, "separator": separator, "held_out": float(held_out), "shard_tokens": shard_tokens,
        "cut": _cutting(sources), "sources": sources,
    }  # fmt: skip
    if done is not None:
        differs = [key for key in task if _comparable(done.get(key)) != _comparable(task[key])]
        if not differs:
            return Shards.open(out)
        if not overwrite:
            raise DataError(
                f"'{out}' already holds text prepared otherwise (different: {', '.join(differs)}). "
                "Choose another --out, or give --overwrite to prepare it anew."
            )
    shards = _Work(out, task, files, tokenizer, progress, longest_line).run()
    if held_out and not shards.held().any():
        warnings.warn(
            f"Nothing could be held out: '{out}' is one short text. There will be no held-out loss.",
            OpenbookWarning,
            stacklevel=2,
        )
    return shards


class _Work:
    """One preparation in its staging folder."""

    def __init__(
        self,
        out: Path,
        task: dict[str, Any],
        files: list[Path],
        tokenizer: Encoder,
        progress: Callable[[Progress], None] | None,
        longest_line: int | None,
    ) -> None:
        self.out, self.task, self.files, self.tokenizer = out, task, files, tokenizer
        self.longest_line = longest_line
        self.staging = _staging(out)
        self.tell = progress
        self.totals = {"documents": 0, "pieces": 0, "tokens": 0, "bytes": 0}
        self.shards: list[dict[str, Any]] = []
        self.next = (0, 0, 0)  # the place of the first piece that is in no finished shard

    def run(self) -> Shards:
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
            with alone(self.staging, self.out):
                self._recall()
                self._write_shards()
                self._finish()
        except OSError as error:
            raise explain_os_error(error, self.out, "prepare text in") from error
        return Shards.open(self.out, verify=False)

    def _recall(self) -> None:
        """Take up what an interrupted run of the same task finished; clear away anything else."""
        saved = _recorded(self.staging)
        if saved is not None and _comparable(saved["task"]) == _comparable(self.task):
            self.shards, self.totals, self.next = saved["shards"], saved["totals"], tuple(saved["next"])
        done = range(len(self.shards))
        known = {PROGRESS, *(name for number in done for name in (*names(number), origins_name(number)))}
        for file in self.staging.iterdir():
            if file.name not in known:
                file.unlink()

    def _write_shards(self) -> None:
        shard = ShardWriter(self.staging, len(self.shards), self.task["dtype"])
        try:
            for batch in _batches(self._pieces()):
                encoded = encode(batch, self.tokenizer, self.task["dtype"])
                start = 0
                while start < len(batch):
                    start = self._add(shard, encoded, start)
                    if shard.tokens >= self.task["shard_tokens"]:
                        self._close(shard)
                        shard = ShardWriter(self.staging, len(self.shards), self.task["dtype"])
                self._report(batch[-1])
            if shard.tokens:
                self._close(shard)
        finally:
            with suppress(OSError):  # a full disk also refuses what is still buffered
                shard.file.close()
        if not self.totals["tokens"]:
            raise DataError(f"The tokenizer made no tokens of the text under '{self.files[0]}'.")

    def _add(self, shard: ShardWriter, encoded: Encoded, start: int) -> int:
        """Pieces from `start` on, until the shard is full; returns the first that is not in it."""
        ends = encoded.ends
        full = ends[start] + self.task["shard_tokens"] - shard.tokens
        stop = min(int(np.searchsorted(ends, full)), len(encoded.pieces))
        origins = [(*piece.place[:2], piece.line) for piece in encoded.pieces[start:stop]]
        shard.add(encoded.ids[ends[start] : ends[stop]], encoded.records[start:stop], origins)
        added = {
            "documents": sum(bool(piece.flags & ENDS) for piece in encoded.pieces[start:stop]),
            "pieces": stop - start,
            "tokens": int(ends[stop] - ends[start]),
            "bytes": int(encoded.records["bytes"][start:stop].sum(dtype=np.int64)),
        }
        self.totals = {key: self.totals[key] + value for key, value in added.items()}
        file, document, part = encoded.pieces[stop - 1].place
        self.next = (file, document, part + 1)
        return stop

    def _pieces(self) -> Iterator[Piece]:
        """All pieces from `self.next` on, in order."""
        start = self.next
        total = 0
        for number, path in enumerate(self.files):
            if number >= start[0]:
                options = {"field": self.task["field"], "separator": self.task["separator"]}
                for place, document in enumerate(read_documents(path, **options, longest_line=self.longest_line)):
                    whole = len(document.text) <= self.task["cut"]["beyond"]
                    texts = [document.text] if whole else cut(document.text, self.task["cut"]["to"])
                    for part, text in enumerate(texts):
                        if (number, place, part) >= start:
                            flags = BEGINS * (part == 0) | ENDS * (part == len(texts) - 1)
                            yield Piece(text, (number, place, part), document.line, flags, total + document.end)
            total += self.task["sources"][number]["bytes"]

    def _close(self, shard: ShardWriter) -> None:
        self.shards.append(shard.close())
        saved = {"task": self.task, "shards": self.shards, "totals": self.totals, "next": self.next}
        write_json(self.staging / PROGRESS, saved)

    def _report(self, piece: Piece) -> None:
        if self.tell is not None:
            total = sum(source["bytes"] for source in self.task["sources"])
            documents, tokens = self.totals["documents"], self.totals["tokens"]
            self.tell(Progress(piece.read, total, documents, tokens, self.files[piece.place[0]]))

    def _finish(self) -> None:
        manifest = {**self.task, **self.totals, "shards": self.shards}
        manifest["fingerprint"] = fingerprint(manifest)
        write_json(self.staging / MANIFEST, manifest)
        for file in (self.staging / PROGRESS, *self.staging.glob("*.part")):
            file.unlink(missing_ok=True)
        old = self.staging.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.staging, self.out)
        sync_folder(self.out.parent)
        shutil.rmtree(old, ignore_errors=True)


def cut(text: str, size: int) -> list[str]:
    """Part `text` into pieces of at most `size` characters: behind a blank line, a line end, or before a space."""
    pieces = []
    at = 0
    while len(text) - at > size:
        low, high = at + size // 2, at + size
        blank, line, space = text.rfind("\n\n", low, high), text.rfind("\n", low, high), text.rfind(" ", low, high)
        end = blank + 2 if blank >= 0 else line + 1 if line >= 0 else space if space > at else high
        while blank >= 0 and end < high and text[end] == "\n":
            end += 1
        pieces.append(text[at:end])
        at = end
    return [*pieces, text[at:]]


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Groups of pieces that are worth encoding together."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cutting(sources: list[dict[str, Any]]) -> dict[str, int]:
    """Documents `beyond` a 16th of the corpus are cut into pieces `to` a 64th of it, both from 1 to 64 Ki characters.

    So a corpus of many documents is held out by whole documents, and one of few still has parts to hold out.
    """
    total = sum(source["bytes"] for source in sources)
    return {name: int(min(1 << 16, max(1 << 10, total // part))) for name, part in (("beyond", 16), ("to", 64))}


def _sources(files: list[Path], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name, size and checksum of each file; a checksum is taken over from `known` when size and time are the same."""
    old = {(s["path"], s["bytes"], s["modified"]): s["sha256"] for s in known}
    sources = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise explain_os_error(error, file, "read") from error
        key = (str(file), status.st_size, status.st_mtime_ns)
        digest = old.get(key) or sha256(file)
        sources.append({"path": key[0], "bytes": key[1], "modified": key[2], "sha256": digest})
    return sources


def _comparable(value: Any) -> Any:
    """A task without what does not change its result: where the sources lie and when they were written."""
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items() if key not in ("path", "modified")}
    return [_comparable(part) for part in value] if isinstance(value, list) else value


def _staging(out: Path) -> Path:
    return out.parent / f".{out.name}.part"


def _earlier(out: Path) -> dict[str, Any] | None:
    """The manifest of what `out` holds, None if it does not exist or is empty; foreign content is refused."""
    if (out / MANIFEST).is_file():
        return read_manifest(out)
    if out.is_dir() and not any(out.iterdir()):
        return None
    if out.exists():
        raise DataError(f"'{out}' exists and is not prepared text: nothing there was touched. Choose another --out.")
    return None


def _recorded(staging: Path) -> dict[str, Any] | None:
    """What an interrupted run wrote down, None when there is nothing to go on from."""
    try:
        saved = read_json(staging / PROGRESS)
    except OpenbookError:
        return None
    whole = isinstance(saved, dict) and {"task", "shards", "totals", "next"} <= saved.keys()
    return saved if whole else None


@contextmanager
def alone(staging: Path, out: Path) -> Iterator[None]:
    """Hold the staging folder against a second process that prepares the same target."""
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"Another process is preparing '{out}' now. Wait, or choose another --out.") from error
        yield
    finally:
        os.close(handle)
