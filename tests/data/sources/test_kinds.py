"""Every kind of file that is read: what is a document there, and what is kept beside its text."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from openbook.cli import main
from openbook.data.documents import Columns, documents, find_files, read_documents
from openbook.data.sources.blocks import blocks, read_block
from openbook.errors import MissingExtra
from tests.data.sources.files import parquet, read_all, record, response, texts

PAGE = """<html lang="sw"><head><title> Hadithi </title><link rel="license" href="https://cc.example/by">
<link rel="canonical" href="https://a.example/1"><script>var x = "no";</script></head>
<body><nav><a href="/">menu</a></nav>
<article><h1>Habari</h1><p>Maneno &amp; mengi ya hadithi hii.</p></article><footer>imprint</footer></body></html>"""


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_packing(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    lines = b'{"text": "a"}\n{"text": "b"}\n'
    two = zstandard.ZstdCompressor().compress(lines[:14]) + zstandard.ZstdCompressor().compress(lines[14:])
    for suffix, packed in {
        ".gz": gzip.compress(lines[:14]) + gzip.compress(lines[14:]),
        ".zst": two,
        ".bz2": bz2.compress(lines),
        ".XZ": lzma.compress(lines),
    }.items():
        path = put(tmp_path / f"a.jsonl{suffix}", packed)
        assert [(d.text, d.line, d.at) for d in read_documents(path)] == [("a", 1, 0), ("b", 2, 14)]
        assert next(iter(read_documents(path))).end == len(packed)


def test_markdown_and_its_front_matter(tmp_path: Path) -> None:
    head = '---\ntitle: "A: b"\nlicense: CC0\ntags:\n  - x\n# note\nempty:\n---\n\n'
    (found,) = read_documents(put(tmp_path / "a.md", head + "# Head\n\n---\n\nbody\n"))
    assert (found.text, dict(found.meta)) == ("# Head\n\n---\n\nbody\n", {"title": "A: b", "license": "CC0"})
    (found,) = read_documents(tmp_path / "a.md", columns=Columns(keep=("license",)))
    assert dict(found.meta) == {"license": "CC0"}
    for text in ("---\nno front matter\n---\nx", "---\n\n---\nx", "---\na: b\n", "text\n---\na: b\n---\n"):
        assert texts(put(tmp_path / "b.md", text)) == [text]


def test_html_is_its_main_text(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    (found,) = read_documents(put(tmp_path / "a.html", PAGE))
    assert "Maneno & mengi ya hadithi hii." in found.text
    assert not any(word in found.text for word in ("menu", "var x", "imprint"))
    assert dict(found.meta) == {
        "title": "Hadithi", "language": "sw", "license": "https://cc.example/by", "url": "https://a.example/1",
    }  # fmt: skip


def test_html_of_nothing_but_boxes_is_read_too(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    assert texts(put(tmp_path / "a.html", b"<div>" * 50_000 + b"deep")) == ["deep"]


@pytest.mark.parametrize(
    ("said", "encoding"),
    [
        ('<meta charset="iso-8859-1">', "latin-1"),
        ("", "utf-8"),
        ('<meta charset="iso-8859-1">', "utf-8"),  # said wrongly
        ('<meta charset="shift_jis">', "shift_jis"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
    ],
)
def test_html_in_any_encoding(tmp_path: Path, said: str, encoding: str) -> None:
    pytest.importorskip("resiliparse")
    word = "日本語のページ" if encoding == "shift_jis" else "Café crème"
    page = f"<html><head>{said}</head><body><p>{word}, a long enough paragraph.</p></body></html>"
    assert texts(put(tmp_path / "a.htm", page.encode(encoding))) == [f"{word}, a long enough paragraph."]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "n": 1}, {"text": "ü\\n", "n": 2}]',
        ' [\n {"text": "a", "n": 1},\n {"text": "ü\\n", "n": 2}\n ]\n ',
        '{"text": "a", "n": 1}\n{"text": "ü\\n", "n": 2}\n',
        '{"n": 1,\n "text": "a"}{"n": 2,\n "text": "ü\\n"}',
    ],
)
def test_json_objects(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.json", content)
    for chunk in (1, 7, 1 << 18):
        monkeypatch.setattr("openbook.data.sources.unpack.CHUNK", chunk)
        found = list(read_documents(path))
        assert [(d.text, d.line, dict(d.meta)) for d in found] == [("a", 1, {"n": 1}), ("ü\n", 2, {"n": 2})]
        assert all(path.read_bytes()[d.at : d.at + 1] == b"{" for d in found)


def test_one_json_object(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", json.dumps({"data": {"body": "x"}, "licence": "CC0"}, indent=2))
    assert [(d.text, dict(d.meta)) for d in read_documents(path, columns=Columns(text="data.body"))] == [
        ("x", {"licence": "CC0"})
    ]


def test_tables(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", '\ufeffid,text,lang\r\n1,"two\nlines, ""quoted""",en\r\n2,,\r\n3,c,\r\n')
    found = [(d.text, d.line, dict(d.meta)) for d in read_documents(path)]
    assert found == [('two\nlines, "quoted"', 2, {"id": "1", "lang": "en"}), ("c", 5, {"id": "3"})]
    assert texts(put(tmp_path / "b.tsv", "a\tb\nx\ty, z\n"), columns=Columns(text="{b}: {a}")) == ["y, z: x"]


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = range(7)
    table = {
        "text": [f"text {i}" for i in rows],
        "n": list(rows),
        "html": ["x" * 3000] * 7,
        "meta": [{"licence": "CC0", "deep": {"text": f"deep {i}"}} for i in rows],
        "name": [f"n{i}" for i in rows],
        "seen": [datetime.datetime(2020, 1, 2, 3, 4, 5)] * 7,
    }
    path = put(tmp_path / "a.parquet", parquet(table))
    found = list(read_documents(path))
    assert [(d.text, d.line, dict(d.meta)) for d in found] == [
        (f"text {i}", i + 1, {"n": i, "name": f"n{i}", "seen": "2020-01-02T03:04:05"}) for i in rows
    ]
    assert found[-1].end == path.stat().st_size
    columns = Columns(text="{meta.deep.text}, {n}", keep=("meta.licence", "nowhere"), id="name")
    found = list(read_documents(path, columns=columns))
    assert [d.text for d in found] == [f"deep {i}, {i}" for i in rows]
    assert dict(found[3].meta) == {"meta.licence": "CC0", "id": "n3"}
    for size in (1, 10000, 1 << 20):
        parts = blocks([path], size)
        assert len(parts) == {1: 4, 10000: 2, 1 << 20: 1}[size]
        assert [d for part in parts for d in read_block(part, columns)] == found


def test_web_archives(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")
    pytest.importorskip("resiliparse")
    records = [
        record("warcinfo", "", b"software: x"),
        response("https://a.example/1", PAGE.encode()),
        response("https://a.example/2", b"GIF89a", "image/gif"),
        response("https://a.example/3", PAGE.encode(), status="404 Not Found"),
        response("https://a.example/4", gzip.compress(b"<p>packed page</p>"), head="Content-Encoding: gzip\r\n"),
        response("https://a.example/5", b"<p>no chunks</p>", head="Transfer-Encoding: chunked\r\n"),
        response("https://a.example/6", "<p>größer</p>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        response("https://a.example/7", b"plain\r\n", "text/plain"),
        record("conversion", "https://a.example/8", b"converted"),
    ]
    for name, content in {
        "a.warc": b"".join(records),
        "b.warc.gz": b"".join(map(gzip.compress, records)),
        "c.warc.wet.gz": gzip.compress(b"".join(records)),
    }.items():
        found, bad = read_all(put(tmp_path / name, content))
        urls = [d.meta["url"] for d in found]
        assert urls == [f"https://a.example/{i}" for i in (1, 4, 5, 6, 7, 8)]
        assert [d.text for d in found[1:]] == ["packed page", "no chunks", "größer", "plain", "converted"]
        assert found[0].meta["title"] == "Hadithi"
        assert found[0].meta["date"] == "2020-01-02T03:04:05Z"
        assert b"".join(records)[found[1].at :].startswith(records[4])
        assert bad == []


@pytest.mark.parametrize(
    ("content", "gives"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b'\n {"text": "a"}', ["a"]),
        (b"{ no json }\n", ["{ no json }\n"]),
        (b"one\n<|endoftext|>\ntwo", ["one\n", "two"]),
        (gzip.compress(b'{"text": "a"}\n', mtime=0), ["a"]),
    ],
)
def test_standard_input(content: bytes, gives: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert list(documents("-")) == gives


def test_a_folder_of_every_kind(tmp_path: Path) -> None:
    names = [
        "a.txt",
        "b.md",
        "c.html",
        "d.jsonl.zst",
        "e.parquet",
        "f.warc.gz",
        "g.ndjson",
        "README.md",
        "LICENSE.txt",
        "x.json",
    ]
    for name in names:
        put(tmp_path / name, "x")
    assert [path.name for path in find_files(tmp_path)] == names[:7]
    assert [path.name for path in find_files(str(tmp_path / "*.json"))] == ["x.json"]
    assert [path.name for path in find_files(tmp_path / "README.md")] == ["README.md"]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("zstandard", "pyarrow", "fastwarc", "resiliparse"):
        for module in [module for module in sys.modules if module.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)
    from openbook.data.sources import markup, parquet

    markup._library.cache_clear()
    parquet._library.cache_clear()
    for name in ("a.txt.zst", "a.parquet", "a.warc", "a.html"):
        with pytest.raises(MissingExtra, match=r"openbook\[data\]"):
            texts(put(tmp_path / name, "x"))


def test_verbs_read_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    put(tmp_path / "a.parquet", parquet({"text": ["one and two", "three"]}))
    put(tmp_path / "b.md", "---\ntitle: x\n---\nfour\n")
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(tmp_path), "--out", str(out), "--vocab", "300"]) == 0
    assert main(["tokenizer", "count", str(out), str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["total"]["bytes"] == len("one and twothreefour\n")
    assert main(["data", "prepare", str(tmp_path), "--tokenizer", str(out), "--out", str(tmp_path / "ids")]) == 0
