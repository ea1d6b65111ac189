"""The order of things: plan → clean → compare → write → tokenise → report; each stage by blocks, each block once.

Killed at any moment, the same command goes on behind the blocks that are done, and what comes out is the same, byte for
byte, as without the interruption, and the same whoever does the blocks. Memory is bounded by a block for each process
and by a few bytes for each document and paragraph while they are compared, not by the corpus.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from openbook import config
from openbook.data.corpus import clean, compare, contaminated, report, write
from openbook.data.corpus.executor import Executor, local
from openbook.data.corpus.plan import Plan, finish, make_plan, take_up
from openbook.data.corpus.recipe import Corpus, Tokens
from openbook.data.corpus.work import read_ledger, read_records
from openbook.data.encoding import Encoder
from openbook.data.prepare import Progress, alone, prepare
from openbook.data.shards import MANIFEST, Shards, sha256
from openbook.errors import DataError, OpenbookError
from openbook.files import explain_os_error, read_json, sync_folder, write_atomic, write_json

J = TypeVar("J")
R = TypeVar("R")
SECONDS = "seconds.json"
LONGEST_RECORD = 1 << 30  # bytes of a line of the cleaned text: what a document may have, each letter written with six
INTERLEAVED = 64  # documents taken from a source before the next, when a tokenizer is trained


@dataclass(frozen=True, slots=True)
class Told:
    """How far a stage is. `done` and `total` are bytes of files or of text."""

    stage: str
    done: int
    total: int
    detail: str = ""


def build(
    recipe: Corpus,
    *,
    executor: Executor | None = None,
    progress: Callable[[Told], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the corpus that `recipe` describes in the folder `recipe.out`, which appears when everything is there.

    A folder that already holds exactly this is left as it is; one that holds something else is an error unless
    `overwrite`. DataError: text that cannot be used; OpenbookError: a full disk (free some space and run it again).
    """
    out = Path(recipe.out).expanduser().absolute()
    plan = make_plan(recipe)
    if _already(out, plan, overwrite):
        return out
    if recipe.tokens is not None:
        _try_tokenizer(recipe.tokens)
    staging = out.parent / f".{out.name}.part"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with alone(staging, out):
            if not take_up(staging, plan):
                _Work(recipe, plan, staging, executor or local(), progress or _untold).run()
                finish(staging, plan)
            _give(staging, out)
    except OSError as error:
        raise explain_os_error(error, out, "prepare a corpus in") from error
    return out


class _Work:
    """One corpus in its staging folder."""

    def __init__(
        self, recipe: Corpus, plan: Plan, folder: Path, executor: Executor, tell: Callable[[Told], None]
    ) -> None:
        self.recipe, self.plan, self.folder = recipe, plan, folder
        self.executor, self.tell = executor, tell
        try:
            self.seconds: dict[str, float] = read_json(folder / SECONDS)
        except OpenbookError:
            self.seconds = {}

    def run(self) -> None:
        """All stages."""
        recipe, parts, sources = self.recipe, self.plan.parts, self.recipe.rooted()
        with self._timed("evaluation sets"):
            contaminated.prepare_index(self.folder, recipe)
        with self._timed("clean"):
            jobs = [clean.Job(self.folder, part, sources[part.source], recipe) for part in parts]
            self._map("cleaning", clean.clean_part, jobs, [part.block.end - part.block.start for part in parts])
        with self._timed("compare"):
            self.tell(Told("comparing", 0, 1))
            found = compare.compare(self.folder, parts, recipe.duplicates)
            contaminated.count_sayings(self.folder, parts, recipe.contamination)
        with self._timed("write"):
            writing = [write.Job(self.folder, part, sources[part.source].name, recipe) for part in parts]
            sizes = [(self.folder / "clean" / f"{part.name}.jsonl").stat().st_size for part in parts]
            self._map("writing", write.write_part, writing, sizes)
        summed = report.Summed()
        for stage in ("clean", "text"):
            for part in parts:
                summed.add(*read_ledger(self.folder / stage / f"{part.name}.json"))
        if recipe.tokens is not None and not any(left["documents"] for left in summed.left.values()):
            raise DataError(report.nothing_left(self.plan, summed))
        shards = self._tokenise() if recipe.tokens is not None else {}
        with self._timed("checksums"):
            read = [(file["path"], file["bytes"], file["modified"]) for file in self.plan.files]
            sums = self._map("checksums", _checksum, read, [file["bytes"] for file in self.plan.files])
        files = [{**file, **checked} for file, checked in zip(self.plan.files, sums, strict=True)]
        shown = dict(self.seconds)
        made = report.report(recipe, self.plan, files, summed, found, shards, shown, self.executor.workers)
        made["contamination"] = contaminated.summed(self.folder, summed.items, summed.overlaps)
        report.write(self.folder, made, Path(recipe.out))
        write_atomic(self.folder / "recipe.toml", config.to_toml(recipe))

    def _map(self, stage: str, function: Callable[[J], R], jobs: Sequence[J], sizes: Sequence[int]) -> list[R]:
        """All jobs, told as they finish; what they returned, in the order of the jobs."""
        total, done = sum(sizes), 0
        size = dict(zip(map(id, jobs), sizes, strict=True))
        results: dict[int, R] = {}
        self.tell(Told(stage, 0, total))
        for job, result in self.executor.map(function, jobs):
            done += size[id(job)]
            self.tell(Told(stage, done, total))
            results[id(job)] = result
        return [results[id(job)] for job in jobs]

    def _tokenise(self) -> dict[str, Shards]:
        """Every source as shards of its own, which training mixes."""
        tokens = self.recipe.tokens
        assert tokens is not None
        with self._timed("tokenizer"):
            tokenizer = self._tokenizer()
        made: dict[str, Shards] = {}
        with self._timed("tokenise"):
            for source in self.recipe.sources:
                text = self.folder / "text" / source.name
                if not _bytes(text):
                    continue

                def tell(reading: Progress, name: str = source.name) -> None:
                    self.tell(
                        Told(f"tokens of {name}", reading.bytes, reading.bytes_total, f"{reading.tokens:,} tokens")
                    )

                made[source.name] = prepare(
                    [str(file) for file in sorted(text.glob("*.jsonl")) if file.stat().st_size],
                    tokenizer,
                    self.folder / "shards" / source.name,
                    held_out=tokens.held_out,
                    shard_tokens=tokens.shard_tokens,
                    overwrite=True,
                    longest_line=LONGEST_RECORD,
                    progress=tell,
                )
                _place_sources(self.folder / "shards" / source.name / MANIFEST, self.folder, Path(self.recipe.out))
        return made

    def _tokenizer(self) -> Encoder:
        """The recipe's tokenizer, loaded or trained on the cleaned text, kept with the corpus."""
        from openbook.text.tokenizer import Tokenizer

        tokens = self.recipe.tokens
        assert tokens is not None
        if tokens.tokenizer is not None:
            loaded = Tokenizer.load(tokens.tokenizer)
            loaded.save(self.folder / "tokenizer")
            return loaded
        mark = self.folder / "tokenizer" / "made.json"
        if mark.exists():
            return Tokenizer.load(mark.parent)
        self.tell(Told("training the tokenizer", 0, 1))
        trained = Tokenizer.train(self._sample(tokens.megabytes * 1e6), tokens.vocab)
        trained.save(mark.parent)
        write_json(mark, {"vocab": tokens.vocab, "megabytes": tokens.megabytes})
        return trained

    def _sample(self, size: float) -> Iterator[str]:
        """Text of all sources in turn, of each as much as its share, `size` bytes in all."""
        folders = [self.folder / "text" / source.name for source in self.recipe.sources]
        whole = sum(map(_bytes, folders))
        reading = [(_texts(folder), size * _bytes(folder) / whole) for folder in folders]
        while reading:
            going = []
            for texts, left in reading:
                for _ in range(INTERLEAVED):
                    text = next(texts, None)
                    if text is None or left <= 0:
                        left = 0
                        break
                    yield text
                    left -= len(text.encode())
                if left > 0:
                    going.append((texts, left))
            reading = going

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start
            write_json(self.folder / SECONDS, self.seconds)


def _try_tokenizer(tokens: Tokens) -> None:
    """What is wrong with the tokenizer that is wanted is said now, and not after hours of cleaning."""
    from openbook.text.tokenizer import Tokenizer

    if tokens.tokenizer is not None:
        Tokenizer.load(tokens.tokenizer)
    else:
        Tokenizer.train(["A text."], min(tokens.vocab, 512))


def _place_sources(manifest: Path, staging: Path, out: Path) -> None:
    """Let a manifest say where its text will lie, once the folder has its name."""
    content = read_json(manifest)
    for source in content["sources"]:
        path = Path(source["path"])
        if path.is_relative_to(staging):
            source["path"] = str(out.expanduser().absolute() / path.relative_to(staging))
    write_json(manifest, content)


def _untold(_: Told) -> None:
    """Where nobody listens."""


def _checksum(read: tuple[str, int, int]) -> dict[str, Any]:
    """Of the bytes of a file that were read; and whether it has been written to since the plan was made."""
    path, size, modified = read
    found: dict[str, Any] = {"sha256": sha256(Path(path), size)}
    return found if Path(path).stat().st_mtime_ns == modified else {**found, "changed": True}


def _texts(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl")):
        for document in read_records(file):
            yield document.text


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.jsonl"))


def _already(out: Path, plan: Plan, overwrite: bool) -> bool:
    """Whether `out` holds this corpus; DataError when it holds something else that may not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        identity = read_json(out / report.NAME)["identity"]
    except (OpenbookError, KeyError, TypeError):
        identity = None
    if identity is None:
        raise DataError(f"'{out}' exists and is not a corpus: nothing there was touched. Choose another --out.")
    if identity == plan.identity:
        return True
    if not overwrite:
        raise DataError(
            f"'{out}' holds a corpus of another recipe or of files that have changed since. Choose another --out, or "
            "give --overwrite to make it anew."
        )
    return False


def _give(staging: Path, out: Path) -> None:
    """The finished folder takes its name; what only the work needed goes first."""
    for name in ("clean", "choice", "evaluation"):
        shutil.rmtree(staging / name, ignore_errors=True)
    for file in [staging / SECONDS, *(staging / "text").glob("*.json")]:
        file.unlink(missing_ok=True)
    old = staging.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(staging, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
