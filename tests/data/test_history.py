"""What a run read can be listed again: equal to what its batches held."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openbook.data.history import SourceRead, read_by
from openbook.data.loader import Loader, Reader
from openbook.data.mixture import Mixture, Source
from openbook.data.prepare import prepare
from openbook.data.shards import MANIFEST, Shards
from openbook.errors import DataError, UsageError
from tests.data.tiny import Bytes, write_jsonl
from tests.laws.test_data_order import LAYOUTS

# each document is one letter repeated, and each letter one document: what a batch holds says what was read
LETTERS = [chr(65 + n) for n in range(26)] + [chr(97 + n) for n in range(26)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("history")
    write_jsonl(folder / "a.jsonl", [letter * (7 * n % 90 + 3) for n, letter in enumerate(LETTERS[:30])])
    (folder / "b.txt").write_text("\n<|endoftext|>\n".join(letter * 40 for letter in LETTERS[30:]))
    return prepare([folder / "a.jsonl", folder / "b.txt"], Bytes(), folder / "out", held_out=0.1, shard_tokens=500)


def check_history(reader: Reader, start: int, end: int, found: dict[str, SourceRead]) -> None:
    batch = reader.batch(start, end - start)
    ids = batch.ids if batch.segments is None else batch.ids[batch.segments > 0]
    held = Counter(chr(number) for number in ids.flatten().tolist() if number < 256 and chr(number) in LETTERS)
    listed: Counter[str] = Counter()
    for part in found.values():
        assert part.tokens == sum(document.tokens for document in part.documents())
        for document in part.documents():
            second = document.path.endswith("b.txt")
            letter = LETTERS[document.document + 30 * second]
            assert document.line == (2 if second and document.document else 1) * document.document + 1
            listed[letter] += document.tokens
    assert set(listed) >= set(held), "a document that was read is not listed"
    for letter in listed:  # bos, eos and what the last row of a stream repeats are the difference
        assert abs(listed[letter] - held[letter]) <= 2 * 3 + 48, "tokens of a document are not those that were read"
    assert abs(sum(listed.values()) - ids.numel()) <= 48 * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_read_is_listed(shards: Shards, layout: dict[str, Any]) -> None:
    reader = Loader(shards, block=48, seed=3, **layout)
    for start, end in ((0, 3), (5, 6), (0, 2 * reader.rows + 5)):
        check_history(reader, start, end, read_by(reader, start, end))
    (whole,) = read_by(reader, 0, reader.rows).values()
    assert whole.epochs == 1
    assert whole.tokens == reader.spans.tokens - (layout.get("packing") == "stream")
    assert {round(document.times, 1) for document in whole.documents()} <= {0.9, 1.0}


def test_of_a_mixture(shards: Shards) -> None:
    mixture = Mixture([Source(name="all", shards=shards), Source(name="again", shards=shards)], block=48, seed=3)
    found = read_by(mixture, 10, 60)
    assert found["all"].rows + found["again"].rows == 50
    assert found["all"].epochs == pytest.approx(25 / mixture.parts()["all"].rows, abs=0.1)
    check_history(mixture, 10, 60, found)


def test_fault_a_listing_of_other_rows(shards: Shards) -> None:
    reader = Loader(shards, block=48, seed=3)
    with pytest.raises(AssertionError, match="is not listed"):
        check_history(reader, 0, 3, read_by(reader, 3, 6))


def test_text_from_before_is_read_but_not_listed(shards: Shards, tmp_path: Path) -> None:
    """A folder without origins opens as ever; its documents cannot be named, and that is said."""
    old = shutil.copytree(shards.folder, tmp_path / "old")
    for file in old.glob("origins-*"):
        file.unlink()
    manifest = json.loads((old / MANIFEST).read_text())
    for entry in manifest["shards"]:
        del entry["origins_sha256"]
    (old / MANIFEST).write_text(json.dumps(manifest))
    reopened = Shards.open(old)
    assert reopened.fingerprint == shards.fingerprint
    (found,) = read_by(Loader(reopened, block=48, seed=3), 0, 4).values()
    assert found.tokens > 100
    with pytest.raises(DataError, match="prepared before"):
        list(found.documents())
    with pytest.raises(UsageError, match="got 4 to 3"):
        read_by(Loader(reopened, block=48), 4, 3)


def test_origins_are_checked(shards: Shards, tmp_path: Path) -> None:
    broken = shutil.copytree(shards.folder, tmp_path / "broken")
    (broken / "origins-00000.bin").write_bytes(b"\0" * (broken / "origins-00000.bin").stat().st_size)
    with pytest.raises(DataError, match="damaged"):
        Shards.open(broken).origins()
    (broken / "origins-00000.bin").unlink()
    with pytest.raises(DataError, match="missing"):
        Shards.open(broken).origins()
