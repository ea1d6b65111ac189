"""What is a document, and what is said about files that hold none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from openbook.data import documents as module
from openbook.data.documents import documents, find_files, read_documents
from openbook.errors import DataError, OpenbookError


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "One.\n\nTwo, with <|endoftext|> inside.\n"
    assert list(documents(put(tmp_path / "a.txt", text))) == [text]


def test_separator_lines_part_documents(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "<|endoftext|>\none\n<|endoftext|>\n \n  <|endoftext|>  \ntwo\n\nstill two")
    assert list(documents(path)) == ["one\n", "two\n\nstill two"]
    assert [d.line for d in read_documents(path)] == [2, 6]
    assert list(documents(put(tmp_path / "b.txt", "a\n---\nb"), separator="---")) == ["a\n", "b"]
    assert len(list(documents(path, separator=""))) == 1


def test_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    assert list(documents(put(tmp_path / "a.txt", b"\xef\xbb\xbfa\r\nb\rc\n"))) == ["a\nb\nc\n"]
    assert list(documents(put(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n'))) == ["a\r\nb"]


def test_jsonl_takes_the_field_and_skips_blanks(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "ä", "n": 1}\n\n{"text": "  "}\n{"text": "b", "body": "B"}')
    assert list(documents(path)) == ["ä", "b"]
    assert list(documents(put(tmp_path / "b.jsonl", '{"body": "B"}'), field="body")) == ["B"]


def test_folder_is_read_in_order_at_every_depth(tmp_path: Path) -> None:
    put(tmp_path / "b.txt", "b")
    put(tmp_path / "a" / "z.JSONL", '{"text": "az"}')
    (tmp_path / "c").mkdir()
    with gzip.open(tmp_path / "c" / "c.txt.gz", "wt") as file:
        file.write("c")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "d"}\n')
    put(tmp_path / "README.md", "not data")
    put(tmp_path / ".hidden" / "x.txt", "no")
    assert list(documents(tmp_path)) == ["az", "b", "c", "d"]
    assert list(documents(str(tmp_path / "**" / "*.txt*"))) == ["b", "c"]
    assert list(documents([tmp_path / "README.md", tmp_path / "b.txt", tmp_path])) == ["not data", "b", "az", "c", "d"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.txt", b"ab\0cd", "byte 2"),
        ("a.txt", b"fine\nb\xc3\xa4d \xff here\n", "line 2, byte 6"),
        ("a.txt", b"cut \xe2\x82", "line 1, byte 5"),
        ("a.txt", "text".encode("utf-16")[:-1], "UTF-16"),
        ("a.txt", b"%PDF-1.7\nxx", "PDF"),
        ("a.txt", gzip.compress(b"text", mtime=0), "gzip"),
        ("a.txt.gz", b"not gzip at all", "not a whole gzip"),
        ("a.txt.gz", gzip.compress(b"some longer text " * 50, mtime=0)[:-12], "not a whole gzip"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: a JSON list"),
        ("a.jsonl", b'{"texts": "a"}\n', "Did you mean 'texts'"),
        ("a.jsonl", b'{"text": 5}\n', "is int, not a string"),
        ("a.jsonl", b'{"text": null}\n', "is NoneType"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "half a character"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1"),
    ],
)
def test_what_is_not_text_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        list(documents(path))
    assert says in str(error.value)
    assert name in str(error.value)


def test_missing_places_are_named(tmp_path: Path) -> None:
    put(tmp_path / "stories.txt", "x")
    with pytest.raises(DataError, match=r"Did you mean 'stories.txt'"):
        find_files(tmp_path / "storys.txt")
    with pytest.raises(DataError, match="No file matches"):
        find_files(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="No text was named"):
        find_files([])
    put(tmp_path / "pictures" / "a.png", "x")
    with pytest.raises(DataError, match=r"other kinds: \.png"):
        find_files(tmp_path / "pictures")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="It is empty"):
        find_files(tmp_path / "empty")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    assert list(documents(put(tmp_path / "a[1].txt", "x"))) == ["x"]


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.txt", "x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OpenbookError, match="Permission denied"):
        list(documents(path))


def test_long_lines_are_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_DOCUMENT", 16)
    text = "aä€𝄞" * 9 + "end\n" + "short\n" * 5
    found = list(documents(put(tmp_path / "a.txt", text)))
    assert "".join(found) == text
    assert len(found) > 3
    with pytest.raises(DataError, match="unexpected end"):
        list(documents(put(tmp_path / "b.txt", ("ä" * 20).encode()[:-1])))


def test_long_json_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 64)
    with pytest.raises(DataError, match="line 2: longer"):
        list(documents(put(tmp_path / "a.jsonl", '{"text": "a"}\n' + json.dumps({"text": "x" * 99}))))
