"""Any column mapping: one column, several, a template, nested; what is kept; what is said when it does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from openbook.data.documents import Columns, read_documents
from openbook.errors import DataError, UsageError

RECORD = {
    "title": "Moby",
    "text": "Call me.",
    "year": 1851,
    "score": 0.5,
    "public": True,
    "lang": None,
    "long": "x" * 2000,
    "tags": ["a", "b"],
    "data": {"body": {"text": "inner"}, "licence": "CC0"},
    "dc.title": "dotted",
    "braces": "{title}",
}


def read(tmp_path: Path, columns: Columns, record: object = None) -> tuple[str, dict[str, object]]:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record or RECORD) + "\n")
    (found,) = read_documents(path, columns=columns)
    return found.text, dict(found.meta)


@pytest.mark.parametrize(
    ("text", "gives"),
    [
        ("text", "Call me."),
        ("data.body.text", "inner"),
        ("dc.title", "dotted"),
        (("title", "text"), "Moby\n\nCall me."),
        (("title", "lang?", "missing?", "text"), "Moby\n\nCall me."),
        ("{title} ({year}, {score})\n{text}", "Moby (1851, 0.5)\nCall me."),
        ("{{{title}}} {lang?}{data.body.text}", "{Moby} inner"),
        ("{braces}", "{title}"),
    ],
)
def test_the_text_is_any_part_of_a_record(tmp_path: Path, text: str | tuple[str, ...], gives: str) -> None:
    assert read(tmp_path, Columns(text=text))[0] == gives


def test_what_is_kept(tmp_path: Path) -> None:
    small = {"title": "Moby", "year": 1851, "score": 0.5, "public": True, "dc.title": "dotted", "braces": "{title}"}
    assert read(tmp_path, Columns())[1] == small
    assert read(tmp_path, Columns(text=("title", "text")))[1] == {k: v for k, v in small.items() if k != "title"}
    assert read(tmp_path, Columns(keep=()))[1] == {}
    assert read(tmp_path, Columns(keep=("data.licence", "tags", "nowhere")))[1] == {
        "data.licence": "CC0", "tags": ["a", "b"],
    }  # fmt: skip
    assert read(tmp_path, Columns(keep=(), id="year"))[1] == {"id": 1851}
    columns = Columns(text=("a", "b"), keep=("c",))
    assert pickle.loads(pickle.dumps(columns)) == columns


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("texts", "no field 'texts'. Did you mean 'text'"),
        ("data.body.txt", "no field 'data.body.txt'"),
        ("data.bodi", "Did you mean 'data.body'"),
        ("data", "field 'data' is dict, not a string. It has: body dict, licence str; name one as 'data.KEY'"),
        ("lang", "field 'lang' is NoneType"),
        ("year", "field 'year' is int, not a string"),
        (("title", "lang"), "field 'lang' is NoneType"),
        (("title", "public"), "field 'public' is bool"),
        ("{title} {tags}", "field 'tags' is list"),
        ("{titel}", "Did you mean 'title'"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, text: str | tuple[str, ...], says: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, Columns(text=text))
    assert says in str(error.value)
    assert "line 1" in str(error.value)


@pytest.mark.parametrize("text", ["", (), ("a", ""), "{", "{a:>9}", "{a!r}", "{} {}", "a}"])
def test_what_cannot_be_meant_is_refused(text: str | tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        Columns(text=text)


def test_a_template_reads_nothing_but_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no field 'title\.__class__'"):
        read(tmp_path, Columns(text="{title.__class__}"))


def test_a_column_of_markup_is_what_a_reader_sees(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"text": "<p>Fish &amp; <b>chips</b><br>for two</p>"}) + "\n" + json.dumps({"text": "1 < 2"})
    )
    found = [document.text for document in read_documents(path, columns=Columns(html=True))]
    assert found == ["Fish & chips\nfor two", "1 < 2"]
