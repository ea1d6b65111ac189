"""Bad input: good documents are kept, the bad ones listed; without a list, the same is an error that says the same."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pytest

from openbook.data.documents import Bad, Columns, read_documents
from openbook.data.sources import unpack
from openbook.data.sources.blocks import blocks, read_block
from openbook.errors import DataError, OpenbookError, OpenbookWarning
from tests.data.sources.files import parquet, read_all, record, response, texts

LATIN = "Grüße aus Köln\n".encode("latin-1")


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


CASES = [
    # name, content, the texts that are kept, (reason, line, byte) of what is listed, part of what is said
    ("a.jsonl", line("a") + b'{"text": "K\xf6ln"}\n' + line("b"), ["a", "b"], [("not UTF-8", 2, 14)], "iconv"),
    ("b.jsonl", line("a") + b'{"text": "\0"}\n' + line("b"), ["a", "b"], [("zero byte", 2, 14)], "byte 24"),
    ("c.jsonl", line("a") + b"{\n" + line("b"), ["a", "b"], [("not JSON", 2, 14)], "column"),
    ("d.jsonl", b'{"text": NaN}\n[1]\n' + line("b"), ["b"],
     [("field 'text' is float", 1, 0), ("not an object", 2, 14)], ""),
    ("e.jsonl", b'{"text": "\\ud800"}\n' + line("b"), ["b"], [("half a character", 1, 0)], "half a character"),
    ("f.jsonl", b"9" * 5000 + b"\n" + line("b"), ["b"], [("not JSON", 1, 0)], "too many digits"),
    ("g.jsonl", b"[" * 99999 + b"\n" + line("b"), ["b"], [("not JSON", 1, 0)], "too deeply"),
    ("h.txt", b"a\n<|endoftext|>\nb\n" + LATIN + b"c\n<|endoftext|>\nd", ["a\n", "d"], [("not UTF-8", 4, 18)], "iconv"),
    ("i.txt", b"a\n<|endoftext|>\nb\0\n<|endoftext|>\nd", ["a\n", "d"], [("zero byte", 3, 16)], "byte 17"),
    ("j.txt", "wide".encode("utf-16-le"), [], [("zero byte", 1, 0)], "iconv -f UTF-16LE"),
    ("k.csv", b"text,n\na,1\nb\nK\xf6ln,2\n\0,3\nc,4\n", ["a", "c"],
     [("not a row", 3, 11), ("not UTF-8", 4, 13), ("zero byte", 5, 20)], ""),
    ("l.csv", b'text,n\na,1\n"b"x,2\nc,3\n', ["a", "c"], [("not a row", 3, 11)], ""),
    ("m.json", b'[{"text": "a"}, 5, {"text": "b"}, {"text": x}, {"text": "c"}]', ["a", "b"],
     [("not an object", 2, 16), ("not JSON", 0, 34)], "The rest of the file is not read"),
    ("n.json", b'[{"text": "a"}, {"text": "cut', ["a"], [("not JSON", 0, 16)], "Unterminated"),
    ("n2.json", b'[{"text": "a"}, {"text": "b", "n": ' + b"9" * 5000 + b"}]", ["a"], [("not JSON", 0, 16)], "digits"),
    ("o.jsonl", b"", [], [("empty", 0, 0)], "0 bytes"),
    ("p.jsonl", b'{"text": " "}\n\n', [], [("no text", 0, 0)], "holds no text"),
    ("q.txt", gzip.compress(b"packed", mtime=0), [], [("not text", 0, 0)], "name it .gz"),
    ("r.txt", b"%PDF-1.7\n", [], [("not text", 0, 0)], "PDF"),
    ("s.txt", "wide".encode("utf-16")[:-1], ["wid"], [("not UTF-16", 0, 0)], "UTF-16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "kept", "listed", "says"), CASES, ids=[case[0] for case in CASES])
def test_the_good_are_kept_and_the_bad_listed(
    tmp_path: Path, name: str, content: bytes, kept: list[str], listed: list[tuple[str, int, int]], says: str
) -> None:
    path = put(tmp_path / name, content)
    found, bad = read_all(path)
    assert [document.text for document in found] == kept
    assert [(b.reason, b.line, b.at - max(0, b.column - 1)) for b in bad] == listed
    assert any(says in str(b) for b in bad)
    assert all(str(path) in str(b) for b in bad)
    with pytest.raises(DataError) as error:
        texts(path)
    assert str(error.value) == str(bad[0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_beside_a_text_costs_no_document(tmp_path: Path, name: str) -> None:
    found, bad = read_all(put(tmp_path / name, '{"text": "a", "title": "b\\ud800", "\\udc00": 1, "n": 2}'))
    assert bad == []
    assert [(document.text, dict(document.meta)) for document in found] == [("a", {"title": "b?", "?": 1, "n": 2})]


def test_lines_of_another_encoding_can_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "Größe\n".encode() + LATIN + "naïve\n".encode())
    assert texts(path, encoding="utf-8,cp1252") == ["Größe\nGrüße aus Köln\nnaïve\n"]
    assert texts(put(tmp_path / "b.txt", LATIN), encoding="latin-1") == ["Grüße aus Köln\n"]
    assert texts(put(tmp_path / "c.jsonl", '{"text": "日本"}\n'.encode("shift_jis")), encoding="shift_jis") == ["日本"]
    with pytest.raises(DataError, match="no encoding 'klingon'"):
        texts(path, encoding="utf-8,klingon")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_is_believed(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "CHUNK", 7)
    assert texts(put(tmp_path / "a.txt", "Größe 🙂\r\nend".encode(encoding))) == ["Größe 🙂\nend"]
    lines = '{"text": "Größe"}\n{"text": "🙂"}\n'.encode(encoding)
    assert texts(put(tmp_path / "b.jsonl.gz", gzip.compress(lines))) == ["Größe", "🙂"]


def test_what_came_before_a_cut_is_kept(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    chance = random.Random(0)
    numbers = [str(chance.getrandbits(200)) for _ in range(8_000)]
    content = b"".join(map(line, numbers))
    for suffix, pack, least in (
        (".gz", lambda data: gzip.compress(data, 1), 3500),
        (".bz2", lambda data: bz2.compress(data, 1), 2000),
        (".xz", lambda data: lzma.compress(data, preset=0), 2000),
        (".zst", zstandard.ZstdCompressor().compress, 2000),
    ):
        packed = pack(content)
        path = put(tmp_path / f"a.jsonl{suffix}", packed[: len(packed) // 2])
        found, bad = read_all(path)
        assert len(found) >= least, suffix
        assert [document.text for document in found] == numbers[: len(found)]
        assert [b.reason for b in bad] == ["cut or damaged"]
        assert "fetch it again" in str(bad[0])
        with pytest.raises(DataError, match="cut or damaged"):
            texts(path)
        damaged = bytearray(packed)
        damaged[len(packed) // 2 : len(packed) // 2 + 40] = b"\xff" * 40
        found, bad = read_all(put(path, bytes(damaged)))
        assert [document.text for document in found[:least]] == numbers[:least]
        assert "cut or damaged" in {b.reason for b in bad}


def test_a_cut_text_keeps_what_there_is(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b"line %d\n" % number for number in range(50_000)), 1)
    found, bad = read_all(put(tmp_path / "a.txt.gz", packed[: len(packed) // 2]))
    assert found[0].text.startswith("line 0\nline 1\n")
    assert len(found[0].text) > 100_000
    assert [b.reason for b in bad] == ["cut or damaged"]


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    whole = parquet({"text": [f"text {number}" for number in range(6)]}, compression="none", use_dictionary=False)
    path = put(tmp_path / "a.parquet", whole)
    at = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    assert read_all(put(path, whole[:-50]))[1][0].reason == "cut or damaged"
    found, bad = read_all(put(path, whole[:at] + b"\xff" * 24 + whole[at + 24 :]))
    assert [document.text for document in found] == ["text 0", "text 1", "text 4", "text 5"]
    assert [(b.reason, b.line) for b in bad] == [("cut or damaged", 3)]
    assert "row group 1" in str(bad[0])
    found, bad = read_all(put(path, whole.replace(b"text 3", b"text \xff")))
    assert [document.line for document in found] == [1, 2, 3, 5, 6]
    assert [(b.reason, b.line) for b in bad] == [("not UTF-8", 4)]
    assert len(blocks([put(path, b"PAR1" * 9)], 8)) == 1
    assert read_all(put(tmp_path / "b.parquet.gz", gzip.compress(whole)))[1][0].reason == "packed"


def test_a_damaged_web_archive(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")
    pytest.importorskip("resiliparse")
    pages = [response(f"https://a.example/{number}", b"<p>page</p>" * 9) for number in range(4)]
    found, bad = read_all(put(tmp_path / "a.warc", b"".join(pages)[:-40]))
    assert (len(found), [(b.reason, b.line) for b in bad]) == (3, [("cut or damaged", 4)])
    long = pages[0].replace(b"Content-Length: ", b"Content-Length: 99999999999")
    assert [b.reason for b in read_all(put(tmp_path / "b.warc", pages[1] + long))[1]] == ["too long"]
    assert [b.reason for b in read_all(put(tmp_path / "c.warc", b"no archive\n" * 9))[1]] == ["not WARC"]
    assert [b.reason for b in read_all(put(tmp_path / "d.warc", record("request", "x", b"GET /")))[1]] == ["not WARC"]
    cut = read_all(put(tmp_path / "e.warc.gz", b"".join(map(gzip.compress, pages))[:-40]))
    assert (len(cut[0]), [b.reason for b in cut[1]]) == (3, ["cut or damaged"])


def test_a_schema_that_changes_between_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    put(tmp_path / "a.parquet", parquet({"text": ["a"], "n": [1]}))
    put(tmp_path / "b.parquet", parquet({"body": ["b"], "n": [1]}))
    put(tmp_path / "c.parquet", parquet({"text": [{"en": "c"}], "n": [1]}))
    put(tmp_path / "d.parquet", parquet({"text": [4]}))
    put(tmp_path / "e.parquet", parquet({"n": ["1"], "text": ["e"]}))
    put(tmp_path / "f.jsonl", b'{"text": {"en": "f"}}\n{"body": "g"}\n{"text": "h"}\n')
    bad: list[Bad] = []
    files = sorted(tmp_path.iterdir())
    assert [d.text for path in files for d in read_documents(path, bad=bad.append)] == ["a", "e", "h"]
    assert [(b.path.name, b.reason) for b in bad] == [
        ("b.parquet", "no field 'text'"),
        ("c.parquet", "field 'text' is struct<en: string>"),
        ("d.parquet", "field 'text' is int64"),
        ("f.jsonl", "field 'text' is dict"),
        ("f.jsonl", "no field 'text'"),
    ]
    for one, has in zip(
        bad[:3], ["body string, n int64", "text struct<en: string>, n int64", "text int64"], strict=True
    ):
        assert f"Wanted: text string. It has: {has}." in str(one)
    assert "It has: en str" in str(bad[3])


def test_a_file_that_grows_is_read_to_its_size(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", line("a") * 3)
    first, last = blocks([path], 20)
    with path.open("ab") as file:
        file.write(line("late"))
    bad: list[Bad] = []
    assert [d.text for part in (first, last) for d in read_block(part, bad=bad.append)] == ["a"] * 3
    assert [(b.reason, b.note) for b in bad] == [("changed while read", True)]
    with pytest.warns(OpenbookWarning, match="it grew from 42 to 59 bytes"):
        list(read_block(last))
    half = put(tmp_path / "b.jsonl", line("a") + b'{"text": "not wri')
    (block,) = blocks([half])
    with half.open("ab") as file:
        file.write(b'tten yet"}\n')
    bad.clear()
    assert [d.text for d in read_block(block, bad=bad.append)] == ["a"]
    assert [b.reason for b in bad] == ["changed while read", "not JSON"]


def test_a_file_that_shrinks_or_goes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", line("a") * 3)
    (block,) = blocks([path])
    put(path, line("a") * 2 + b'{"te')
    bad: list[Bad] = []
    assert [d.text for d in read_block(block, bad=bad.append)] == ["a", "a"]
    assert [b.reason for b in bad] == ["changed while read"]
    with pytest.raises(DataError, match="became shorter while it was read"):
        list(read_block(block))
    path.unlink()
    bad.clear()
    assert list(read_block(block, bad=bad.append)) == []
    assert read_all(path) == ([], [bad[0]])
    assert blocks([path], bad=bad.append) == []
    assert [b.reason for b in bad] == ["unreadable"] * 2
    for fails in (lambda: list(read_block(block)), lambda: texts(path), lambda: blocks([path])):
        with pytest.raises(OpenbookError, match="does not exist"):
            fails()


def test_a_disk_that_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.jsonl", line("a") * 100)
    monkeypatch.setattr(unpack, "CHUNK", 140)
    from openbook.data.sources import window

    def fail(self: window.Window, size: int = -1) -> bytes:
        if self.at > 500:
            raise OSError(5, "Input/output error")
        data = self.file.read(size)
        self.at += len(data)
        return data

    monkeypatch.setattr(window.Window, "read", fail)
    found, bad = read_all(path)
    assert (len(found), [b.reason for b in bad]) == (40, ["unreadable"])
    with pytest.raises(OpenbookError, match="Input/output error"):
        texts(path)


def test_what_unpacks_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zstandard = pytest.importorskip("zstandard")
    from openbook.data.sources import stream

    monkeypatch.setattr(stream, "RATIO_FROM", 1 << 20)
    for name, pack in {"a.jsonl.gz": gzip.compress, "b.txt.zst": zstandard.ZstdCompressor().compress}.items():
        path = put(tmp_path / name, pack(b" " * (1 << 24)))
        assert [b.reason for b in read_all(path)[1]] == ["unpacks without end"]


def test_long_lines(tmp_path: Path) -> None:
    from openbook.data.sources.blocks import Block
    from openbook.data.sources.blocks import read as read_by
    from openbook.data.sources.stream import Options

    long = line("x" * 300)
    for name, content, kept, at in (
        ("a.jsonl", line("a") + long + line("b"), ["a", "b"], [(2, 14)]),
        ("b.jsonl", long, [], [(1, 0)]),
        ("c.jsonl", long[:-1], [], [(1, 0)]),
        ("d.json", b"[" + line("a") + b"," + long + b"]", ["a"], [(0, 16)]),
        ("e.csv", b"text,n\na,1\n" + b"x" * 300 + b",2\nb,3\n", ["a", "b"], [(3, 11)]),
        ("f.html", PAGE_OF * 20, [], [(0, 0)]),
    ):
        path = put(tmp_path / name, content)
        bad: list[Bad] = []
        options = Options(bad=bad.append, longest_line=100)
        size = path.stat().st_size
        assert [d.text for d in read_by(Block(path, 0, size, size), options)] == kept, name
        assert [b.line for b in bad] == [number for number, _ in at], name
        assert {b.reason for b in bad} <= {"too long", "not a row"}, name
    for limit in range(80, 120):  # wherever a chunk ends
        size = (tmp_path / "a.jsonl").stat().st_size
        read = read_by(Block(tmp_path / "a.jsonl", 0, size, size), Options(bad=lambda _: None, longest_line=limit))
        assert [d.text for d in read] == ["a", "b"]


PAGE_OF = b"<p>a page</p>"


def test_columns_and_a_list_together(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"a": "x", "b": null}\n{"a": "x", "b": "y"}\n')
    found, bad = read_all(path, columns=Columns(text=("a", "b")))
    assert [d.text for d in found] == ["x\n\ny"]
    assert [b.reason for b in bad] == ["field 'b' is NoneType"]
