"""Preparing text: what the shards hold, interruption, repetition, damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbook.data import prepare as module
from openbook.data.documents import documents
from openbook.data.prepare import Progress, alone, cut, prepare
from openbook.data.shards import Shards
from openbook.errors import DataError, OpenbookError, UsageError
from openbook.text import Tokenizer
from tests.data.tiny import SLICE, Bytes, make, write_jsonl


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a prepared folder; the manifest without where the sources lie."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found["manifest.json"])
    for source in manifest["sources"]:
        source["path"] = source["modified"] = None
    return {**found, "manifest.json": json.dumps(manifest).encode()}


def test_ids_are_bos_text_eos(tmp_path: Path) -> None:
    shards = make(tmp_path, ["ab", "ü"], held_out=0)
    assert shards.read(0, shards.tokens).tolist() == [256, 97, 98, 257, 256, *"ü".encode(), 257]
    assert (shards.documents, shards.tokens, shards.bytes) == (2, 8, 4)
    assert not list(tmp_path.glob(".*")), "nothing is left beside the target"


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_long_documents_are_whole_again(tmp_path: Path, bos: bool, eos: bool) -> None:
    text = "\n\n".join(f"Paragraph {i} has words." for i in range(400))
    shards = make(tmp_path, [text], Bytes(bos=bos, eos=eos), held_out=0)
    assert len(shards.pieces) > 1
    assert shards.documents == 1
    ids = shards.read(0, shards.tokens).tolist()
    assert ids == [256] * bos + list(text.encode()) + [257] * eos
    spans = shards.spans(held_out=False)
    assert len(spans) == 1, "neighbouring pieces are one run"
    assert spans.bytes.sum() == len(text)


def test_vocabulary_decides_the_width(tmp_path: Path) -> None:
    for vocab, dtype in ((1 << 16, "<u2"), ((1 << 16) + 1, "<u4")):
        folder = tmp_path / str(vocab)
        folder.mkdir()
        assert make(folder, ["one", "two"], Bytes(vocab=vocab)).manifest["dtype"] == dtype


def test_several_shards_hold_the_same_text(tmp_path: Path) -> None:
    one = prepare(SLICE, Bytes(), tmp_path / "one", held_out=0.2)
    many = prepare(SLICE, Bytes(), tmp_path / "many", held_out=0.2, shard_tokens=5_000)
    assert len(many.manifest["shards"]) > 10
    for held in (False, True):
        a, b = one.spans(held_out=held), many.spans(held_out=held)
        assert np.array_equal(a.read(0, a.tokens), b.read(0, b.tokens))
        assert a.bytes.sum() == b.bytes.sum()
    assert one.spans(held_out=True).tokens + one.spans(held_out=False).tokens == one.tokens


def test_held_out_is_by_text_and_stable(tmp_path: Path) -> None:
    texts = list(documents(SLICE))

    def held(name: str, texts: list[str]) -> set[str]:
        folder = tmp_path / name
        folder.mkdir()
        shards = make(folder, texts, held_out=0.2)
        spans = shards.spans(held_out=True)
        return {
            Bytes().decode(shards.read(int(s), int(n)).tolist())
            for s, n in zip(spans.starts, spans.lengths, strict=True)
        }

    whole = held("whole", texts)
    assert 0.1 < len(whole) / len(texts) < 0.3
    assert held("backwards", texts[::-1] + texts[:9]) == whole, "order and repetition change nothing"
    assert held("half", texts[::2]) == whole & set(texts[::2])


def test_something_is_held_out_of_a_small_corpus(tmp_path: Path) -> None:
    for count in (2, 3, 7):
        folder = tmp_path / str(count)
        folder.mkdir()
        shards = make(folder, [f"text {i}" for i in range(count)], held_out=0.001)
        assert shards.held().sum() == 1
    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"Line {i} of a book." for i in range(300)))
    assert 0 < prepare(book, Bytes(), tmp_path / "book").held().mean() < 0.5


def test_one_text_alone_is_all_trained_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Nothing could be held out"):
        shards = make(tmp_path, ["the same", "the same"])
    assert not shards.held().any()
    assert shards.spans(held_out=True).tokens == 0


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 10_000)
    told: list[Progress] = []
    shards = prepare(SLICE, Bytes(), tmp_path / "out", progress=told.append)
    assert len(told) > 5
    assert [p.bytes for p in told] == sorted(p.bytes for p in told)
    assert told[-1].bytes == told[-1].bytes_total == SLICE.stat().st_size
    assert (told[-1].documents, told[-1].tokens) == (shards.documents, shards.tokens)


def test_prepared_again_is_opened_as_it_is(tmp_path: Path) -> None:
    source = shutil.copy(SLICE, tmp_path / "a.jsonl")
    first = prepare(source, Bytes(), tmp_path / "out")
    tokenizer = Bytes()
    os.utime(source)
    assert prepare(source, tokenizer, tmp_path / "out").fingerprint == first.fingerprint
    assert tokenizer.calls == 0


def test_other_preparation_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source = shutil.copy(SLICE, tmp_path / "a.jsonl")
    before = prepare(source, Bytes(), tmp_path / "out")
    with pytest.raises(DataError, match="held_out"):
        prepare(source, Bytes(), tmp_path / "out", held_out=0.3)
    with pytest.raises(DataError, match="tokenizer"):
        prepare(source, Bytes(vocab=400), tmp_path / "out")
    Path(source).write_text('{"text": "other"}\n{"text": "more"}\n')
    with pytest.raises(DataError, match=r"sources.*--overwrite"):
        prepare(source, Bytes(), tmp_path / "out")
    assert Shards.open(tmp_path / "out").fingerprint == before.fingerprint
    assert prepare(source, Bytes(), tmp_path / "out", overwrite=True).documents == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="nothing there was touched"):
            prepare(SLICE, Bytes(), tmp_path / "out", overwrite=overwrite)
    with pytest.raises(DataError, match="nothing there was touched"):
        prepare(SLICE, Bytes(), tmp_path / "out" / "thesis.doc")
    assert (tmp_path / "out" / "thesis.doc").read_text() == "years of work"


@pytest.mark.parametrize("stop_at", [1, 2, 5, 9])
def test_interrupted_and_continued_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    monkeypatch.setattr(module, "BATCH", 8_000)
    book = tmp_path / "a book.txt"
    book.write_text("\n\n".join(f"Line {i} of the book, which is rather long." for i in range(2_000)))
    task = {"paths": [SLICE, book], "held_out": 0.1, "shard_tokens": 9_000}
    whole = contents(prepare(out=tmp_path / "whole", tokenizer=Bytes(), **task).folder)  # type: ignore[arg-type]

    class Stopped(BaseException):
        pass

    class Stops(Bytes):
        def encode_batch(self, texts: object, /) -> list[list[int]]:
            if self.calls == stop_at:
                raise Stopped
            return super().encode_batch(texts)  # type: ignore[arg-type]

    rounds = 0
    while not (tmp_path / "parts").exists():
        rounds += 1
        assert rounds < 60
        try:
            # Every second round gets one batch further, so that some interruptions come before a shard is done.
            prepare(out=tmp_path / "parts", tokenizer=Stops() if rounds % 4 else Bytes(), **task)  # type: ignore[arg-type]
        except Stopped:
            assert not (tmp_path / "parts").exists()
    assert rounds > 1
    assert contents(tmp_path / "parts") == whole


def test_other_task_does_not_take_up_a_half_done_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 8_000)

    class Stops(Bytes):
        def encode_batch(self, texts: object, /) -> list[list[int]]:
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().encode_batch(texts)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        prepare(SLICE, Stops(), tmp_path / "out", shard_tokens=9_000)
    other = prepare(SLICE, Bytes(vocab=400), tmp_path / "out", shard_tokens=9_000)
    clean = prepare(SLICE, Bytes(vocab=400), tmp_path / "clean", shard_tokens=9_000)
    assert other.fingerprint == clean.fingerprint


def test_damaged_progress_starts_over(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "progress.json").write_text('{"task": ')
    (tmp_path / ".out.part" / "tokens-00000.part").write_bytes(b"half")
    assert prepare(SLICE, Bytes(), tmp_path / "out").documents == 124


@pytest.mark.slow
def test_killed_process_is_continued(tmp_path: Path) -> None:
    program = (
        "import sys, time; from tests.data.tiny import Bytes, SLICE; from openbook.data import prepare as m\n"
        "m.BATCH = 4000\n"
        "m.prepare(SLICE, Bytes(), sys.argv[1], shard_tokens=5000, progress=lambda p: time.sleep(0.05))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out")], cwd=root)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.part/tokens-*.bin"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    done = len(list(tmp_path.glob(".out.part/tokens-*.bin")))
    assert done >= 2
    continued = prepare(SLICE, Bytes(), tmp_path / "out", shard_tokens=5000)
    assert continued.fingerprint == prepare(SLICE, Bytes(), tmp_path / "clean", shard_tokens=5000).fingerprint


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    def again(_: Progress) -> None:
        with pytest.raises(DataError, match="Another process"):
            prepare(SLICE, Bytes(), tmp_path / "out")

    prepare(SLICE, Bytes(), tmp_path / "out", progress=again)


def test_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OpenbookError, match="disk is full"):
            prepare(SLICE, Bytes(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(SLICE, Bytes(), tmp_path / "out").documents == 124


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_place_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OpenbookError, match="Permission denied"):
            prepare(SLICE, Bytes(), tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_place_below_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OpenbookError, match="not a folder"):
        prepare(SLICE, Bytes(), tmp_path / "file" / "out")


def test_wrong_settings(tmp_path: Path) -> None:
    for held_out in (-0.1, 0.6, float("nan")):
        with pytest.raises(UsageError, match="held_out"):
            prepare(SLICE, Bytes(), tmp_path / "out", held_out=held_out)
    with pytest.raises(UsageError, match="shard_tokens"):
        prepare(SLICE, Bytes(), tmp_path / "out", shard_tokens=0)


def test_a_tokenizer_that_makes_nothing(tmp_path: Path) -> None:
    class Nothing(Bytes):
        def encode_batch(self, texts: object, /) -> list[list[int]]:
            return [[] for _ in texts]  # type: ignore[attr-defined]

    with pytest.raises(DataError, match="no tokens"):
        make(tmp_path, ["a", "b"], Nothing(bos=False, eos=False))


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(SLICE, Bytes(), tmp_path / "out", shard_tokens=50_000).folder


@pytest.mark.parametrize("name", ["tokens-00001.bin", "pieces-00000.bin"])
def test_damaged_shards_are_found(prepared: Path, name: str) -> None:
    path = prepared / name
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(DataError, match=rf"{name}.*cut or damaged"):
        Shards.open(prepared, verify=False)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    Shards.open(prepared, verify=False)
    with pytest.raises(DataError, match=rf"{name}.*checksum"):
        Shards.open(prepared)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}.*missing"):
        Shards.open(prepared)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(tokens=5), "checksum"),
        (lambda m: m.update(held_out=0.2), "checksum"),
        (lambda m: m.pop("shards"), "checksum"),
        (lambda m: m.update(shards=[3]), "checksum"),
        (lambda m: m.update(version=9), "format 9"),
        (lambda m: m.update(format="other"), "not the manifest"),
    ],
)
def test_changed_manifests_are_found(prepared: Path, change: object, says: str) -> None:
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)  # type: ignore[operator]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=says):
        Shards.open(prepared)


def test_unfinished_and_missing_folders(tmp_path: Path, prepared: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Shards.open(tmp_path / "nowhere")
    (prepared / "manifest.json").write_text('{"format": ')
    with pytest.raises(DataError, match="not valid JSON"):
        Shards.open(prepared)
    (prepared / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest\.json"):
        Shards.open(prepared)


# --- cutting ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab \n.", max_size=300), st.integers(2, 40))
def test_pieces_are_the_text(text: str, size: int) -> None:
    pieces = cut(text, size)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces) or text == ""


def test_cut_prefers_paragraphs() -> None:
    assert cut("aaa bbb\n\nccc\nddd eee fff", 12) == ["aaa bbb\n\n", "ccc\nddd eee", " fff"]
    assert cut("aaa bbb ccc\nddd\n\n\n\neee", 20) == ["aaa bbb ccc\nddd\n\n\n\n", "eee"]
    assert cut("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_written_lines_are_documents(tmp_path: Path) -> None:
    texts = ["a\nb", 'quote "', "é𝄞"]
    assert list(documents(write_jsonl(tmp_path / "a.jsonl", texts))) == texts


def test_arrays_and_lists_of_ids_make_the_same_shards(tmp_path: Path) -> None:
    """Our own tokenizer hands over arrays; another one, lists."""
    tokenizer = Tokenizer.train((json.loads(line)["text"] for line in SLICE.read_text().splitlines()), 400)

    class Lists(Bytes):
        vocab, bos, eos, fingerprint = tokenizer.vocab, tokenizer.bos, tokenizer.eos, tokenizer.fingerprint

        def __init__(self) -> None:
            pass

        def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]:
            return tokenizer.encode_batch(texts)

        def token_bytes(self, number: int, /) -> bytes:
            return tokenizer.token_bytes(number)

    for options in ({}, {"shard_tokens": 1000}):
        arrays = contents(prepare(SLICE, tokenizer, tmp_path / f"arrays{len(options)}", **options).folder)  # type: ignore[arg-type]
        assert contents(prepare(SLICE, Lists(), tmp_path / f"lists{len(options)}", **options).folder) == arrays  # type: ignore[arg-type]


def test_a_folder_finished_meanwhile_is_not_worked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of the staging folder and its lock another process may finish and rename it."""
    staging, out = tmp_path / ".out.part", tmp_path / "out"
    staging.mkdir()
    monkeypatch.setattr("fcntl.flock", lambda *_: staging.rename(out))
    with pytest.raises(DataError, match="just prepared"), alone(staging, out):
        raise AssertionError("the finished folder would be worked in")
