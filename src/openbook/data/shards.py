"""Prepared text on disk: token ids in memory-mapped shards, an index of their pieces, and a manifest.

    FOLDER/manifest.json        counts, checksums, where the text came from, which tokenizer read it
    FOLDER/tokens-00000.bin     ids one after the other, little-endian uint16 (uint32 when the vocabulary needs it)
    FOLDER/pieces-00000.bin     one `PIECE` record per piece, in the order of the tokens
    FOLDER/origins-00000.bin    one `ORIGIN` record per piece: which document it is of (absent in older folders)

A *piece* is a document, or a part of a long one. The first piece of a document begins with the bos token, if the
tokenizer has one, and its last piece ends with eos; the ids of a document therefore stand in one run. Each piece knows
the UTF-8 bytes of its text, so that bits per byte = nats / (bytes · ln 2) is exact, and a hash of its text, by which it
is held out or not: equal texts always fall on the same side, on every machine, whatever other text there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openbook.errors import ConfigError, DataError
from openbook.files import explain_os_error, read_json

FORMAT, VERSION = "openbook-shards", 1
CHUNK = 1 << 20  # bytes that are read at once
MANIFEST = "manifest.json"
BEGINS, ENDS = 1, 2  # flags of a piece: it is the first, the last of its document
PIECE = np.dtype(
    [
        ("hash", "<u8"),  # of the text: decides what is held out
        ("tokens", "<u4"),  # ids, bos and eos included
        ("bytes", "<u4"),  # UTF-8 bytes of the text
        ("lead", "<u4"),  # bytes of the first id that is text
        ("flags", "<u4"),
    ]
)

ORIGIN = np.dtype(
    [
        ("file", "<u4"),  # in the manifest's list of sources
        ("document", "<u4"),  # in that file, from 0
        ("line", "<u8"),  # where the document begins, from 1
    ]
)

Ints = NDArray[np.int64]


class Shards:
    """A folder of prepared text, opened for reading.

    tokens, documents, bytes   of all the text, held-out text included
    vocab, bos, eos            of the tokenizer; `tokenizer` is its fingerprint
    fingerprint                of the ids and of the split: equal when and only when training sees the same data
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], tokens: Sequence[NDArray[Any]], pieces: NDArray[Any]
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokens: int = manifest["tokens"]
        self.documents: int = manifest["documents"]
        self.bytes: int = manifest["bytes"]
        self.vocab: int = manifest["vocab"]
        self.bos: int | None = manifest["bos"]
        self.eos: int | None = manifest["eos"]
        self.tokenizer: str = manifest["tokenizer"]
        self.held_out: float = manifest["held_out"]
        self.fingerprint: str = manifest["fingerprint"]
        self.pieces = pieces  # [P] PIECE
        self._tokens = tokens
        self._bases: Ints = np.cumsum([0] + [len(part) for part in tokens], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Shards:
        """Open a prepared folder. `verify` reads every shard once and compares checksums; sizes are always compared.

        Raises `DataError` for a folder that was never finished, and for a shard that is missing, cut or changed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        dtype = np.dtype(manifest["dtype"])
        files = [tuple(folder / name for name in names(number)) for number in range(len(manifest["shards"]))]
        for (ids, index), entry in zip(files, manifest["shards"], strict=True):
            _check_size(ids, entry["tokens"] * dtype.itemsize)
            _check_size(index, entry["pieces"] * PIECE.itemsize)
        if verify:
            digests = [entry[key] for entry in manifest["shards"] for key in ("tokens_sha256", "pieces_sha256")]
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(_check_sha, [file for pair in files for file in pair], digests))
        try:
            tokens = [np.memmap(ids, dtype=dtype, mode="r") for ids, _ in files]
            pieces = np.concatenate([np.fromfile(index, dtype=PIECE) for _, index in files])
        except OSError as error:
            raise explain_os_error(error, folder, "read") from error
        return cls(folder, manifest, tokens, pieces)

    def origins(self) -> NDArray[Any]:
        """Where each piece came from, [P] ORIGIN. Raises `DataError` for text prepared before this was written down."""
        parts = []
        for number, entry in enumerate(self.manifest["shards"]):
            path = self.folder / origins_name(number)
            if "origins_sha256" not in entry:
                raise DataError(
                    f"'{self.folder}' was prepared before it was written down which document each piece is of. "
                    "Prepare the text again, to another folder: the ids will be the same."
                )
            _check_size(path, entry["pieces"] * ORIGIN.itemsize)
            _check_sha(path, entry["origins_sha256"])
            parts.append(np.fromfile(path, dtype=ORIGIN))
        return np.concatenate(parts)

    def held(self) -> NDArray[np.bool_]:
        """Which pieces are held out, [P]: those with the lowest hashes.

        A corpus so small that none falls under the threshold gives the one text with the lowest hash; a corpus of one
        text gives none.
        """
        hashes = self.pieces["hash"]
        if self.held_out == 0:
            return np.zeros(len(hashes), dtype=bool)
        held = np.asarray(hashes < np.uint64(min(int(self.held_out * 2.0**64), 2**64 - 1)))
        if not held.any() or held.all():
            held = np.asarray(hashes == hashes.min())
        return np.zeros(len(hashes), dtype=bool) if held.all() else held

    def spans(self, *, held_out: bool) -> Spans:
        """The runs of text to train on, or those held out; neighbouring pieces of one document are one run."""
        chosen = self.held() == held_out
        counts = self.pieces["tokens"].astype(np.int64)
        starts = np.cumsum(counts) - counts
        joined = np.zeros(len(counts), dtype=bool)
        joined[1:] = chosen[1:] & chosen[:-1] & (self.pieces["flags"][1:] & BEGINS == 0)
        joined &= ~np.isin(starts, self._bases)  # a run never crosses a shard
        first = np.flatnonzero(chosen & ~joined)
        if not len(first):
            return Spans(self, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), first)
        chosen_at = np.flatnonzero(chosen)
        run = np.searchsorted(chosen_at, first)
        lengths = np.add.reduceat(counts[chosen_at], run)
        size = np.add.reduceat(self.pieces["bytes"][chosen_at].astype(np.int64), run)
        return Spans(self, starts[first], lengths, size, first)

    def read(self, start: int, count: int) -> Ints:
        """`count` ids from the place `start` of the whole text; they lie in one shard."""
        shard = int(np.searchsorted(self._bases, start, side="right")) - 1
        at = start - int(self._bases[shard])
        return self._tokens[shard][at : at + count].astype(np.int64)


class Spans:
    """Runs of text, seen as one sequence of ids 0 … tokens-1 (the *sequence* that packing lays out in rows)."""

    def __init__(self, shards: Shards, starts: Ints, lengths: Ints, size: Ints, first: Ints) -> None:
        self.shards = shards
        self.starts = starts  # [N] where each run stands in the shards
        self.lengths = lengths  # [N] ids
        self.bytes = size  # [N] bytes of text
        self.first = first  # [N] the first piece of each run
        self.bounds: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])  # [N+1] in the sequence

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Ids in the sequence."""
        return int(self.bounds[-1])

    def read(self, start: int, count: int) -> Ints:
        """Ids `start` … `start+count-1` of the sequence."""
        run = int(np.searchsorted(self.bounds, start, side="right")) - 1
        offset = start - int(self.bounds[run])
        left = int(self.lengths[run]) - offset
        if count <= left:
            return self.shards.read(int(self.starts[run]) + offset, count)
        parts = []
        while count > 0:
            taken = min(count, int(self.lengths[run]) - offset)
            parts.append(self.shards.read(int(self.starts[run]) + offset, taken))
            count, run, offset = count - taken, run + 1, 0
        return np.concatenate(parts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a prepared folder."""
    path = folder / MANIFEST
    if not path.is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"'{folder}' is not prepared text: it {what}. Make it with `openbook data prepare`.")
    try:
        manifest = read_json(path)
    except ConfigError as error:
        raise DataError(str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"'{path}' is not the manifest of prepared text. Prepare into another folder.")
    if (version := manifest.get("version")) != VERSION:
        raise DataError(f"'{folder}' was prepared in format {version}, this is {VERSION}. Prepare the text again.")
    try:
        sound = manifest["fingerprint"] == fingerprint(manifest) and manifest["dtype"] in ("<u2", "<u4")
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError(f"'{path}' was changed or is damaged: its own checksum does not fit. Prepare the text again.")
    return manifest


def names(number: int) -> tuple[str, str]:
    """The files of one shard: its ids, its pieces."""
    return f"tokens-{number:05d}.bin", f"pieces-{number:05d}.bin"


def origins_name(number: int) -> str:
    """The file of one shard that says where its pieces came from."""
    return f"origins-{number:05d}.bin"


def fingerprint(manifest: dict[str, Any]) -> str:
    """What training sees, in 32 hex digits: ids, pieces and split, not where the text lay or when it was written."""
    keys = ("dtype", "vocab", "bos", "eos", "tokenizer", "held_out", "documents", "pieces", "tokens", "bytes")
    parts = [str(manifest[key]) for key in keys]
    for entry in manifest["shards"]:
        parts += [str(entry[key]) for key in ("tokens", "tokens_sha256", "pieces", "pieces_sha256")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def sha256(path: Path, size: int | None = None) -> str:
    """The checksum of a file's content; of its first `size` bytes, if it has become longer."""
    try:
        with path.open("rb") as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            while chunk := file.read(min(size, CHUNK)):
                digest.update(chunk)
                size -= len(chunk)
            return digest.hexdigest()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise DataError(f"The shard '{path}' is missing. Copy the folder again, or prepare the text again.")
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"The shard '{path}' has {size:,} bytes where its manifest says {expected:,}: it was cut or damaged. "
            "Copy it again, or prepare the text again."
        )


def _check_sha(path: Path, expected: str) -> None:
    if sha256(path) != expected:
        raise DataError(
            f"The shard '{path}' is damaged: its checksum is not the one in its manifest. "
            "Copy it again, or prepare the text again."
        )
