"""Evaluation items in a training set: what is found, passed over, cut out; `openbook data decontaminate`."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from openbook.cli import main
from openbook.data.dedupe import contamination, lookup, words
from openbook.data.dedupe.contamination import Decontaminate, Index, Overlaps
from openbook.data.dedupe.evaluation import evaluations
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import DataError, UsageError
from tests.archive import archive
from tests.data.tiny import write_jsonl

QUESTION = "Which river did the general's army cross, on the night before the battle, without losing a man?"
SHORT = "Why do cats purr when they are alone"


def prose(name: str, count: int) -> str:
    """Words that stand nowhere else."""
    return " ".join(f"{name}{i}" for i in range(count))


def index(folder: Path, records: Sequence[object], **options: object) -> Index:
    path = folder / "quiz.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Index.build(evaluations([path]), folder / "index", **options)  # type: ignore[arg-type]


def shared(found: Index, text: str) -> list[tuple[str, list[int]]]:
    return [(text[f.start : f.end], [found.item(i).number for i in f.items]) for f in found.find(text)]


def document(text: str, line: int = 1) -> Document:
    return Document(text, Path("some.jsonl"), line, 0, {"id": 7})


# ------------------------------------------------------------------------------------------------ found


def test_what_is_shared_is_found_whatever_its_dress(tmp_path: Path) -> None:
    found = index(tmp_path, [{"q": prose("x", 40)}, {"q": QUESTION, "choices": ["The Rhine", SHORT]}])
    purr = "“why do cats purr, when they are alone?”"  # a short text, as a whole
    text = f"{prose('a', 50)} ({QUESTION.upper()}) {prose('b', 50)}\n{purr} {prose('c', 3)}"
    assert shared(found, text) == [
        (f"({QUESTION.upper()})", [2]),
        (purr, [2]),
    ]
    assert shared(found, QUESTION.rsplit(" ", 6)[0]) == []  # twelve words
    assert shared(found, SHORT.rsplit(" ", 1)[0]) == []
    assert found.sets == {"quiz": {"items": 2, "too_short": 0}}


def test_a_question_too_short_to_be_known_is_found_with_its_answer(tmp_path: Path) -> None:
    record = {"query": "Cats purr when", "choices": ["they are left alone", "they are fed and warm"], "gold": 1}
    found = index(tmp_path, [{"query": "Dogs bark", "choices": ["at cats"]}, record])
    text = f"{prose('a', 9)} cats purr when they are fed and warm. {prose('b', 9)} Cats purr when left alone"
    assert shared(found, text) == [("cats purr when they are fed and warm.", [2])]
    assert found.sets["quiz"] == {"items": 2, "too_short": 1}


def test_parts_of_a_long_item_that_overlap_are_one(tmp_path: Path) -> None:
    found = index(tmp_path, [{"text": prose("x", 100)}, {"text": prose("x", 30)}])
    text = f"{prose('x', 60)} . {prose('x', 13)}"
    assert shared(found, text) == [(text, [1, 2])]


def test_the_wording_of_a_task_is_passed_over_but_not_a_passage_of_many_questions(tmp_path: Path) -> None:
    wording, passage = prose("w", 20), prose("p", 40)
    records = [{"prompt": f"{wording} {prose(f'i{i}x', 20)}", "passage": passage} for i in range(12)]
    found = index(tmp_path, records)
    assert shared(found, wording) == []
    assert shared(found, passage) == [(passage, list(range(1, 13)))]
    assert shared(found, prose("i3x", 20)) == [(prose("i3x", 20), [4])]


def test_phrases_are_passed_over_but_nothing_longer(tmp_path: Path) -> None:
    found = index(tmp_path, [{"text": prose("x", 60)}])
    marks = np.zeros(len(found), bool)
    marks[found.grams(prose("x", 60))] = True
    assert marks.all()
    assert shared(found.ignore(marks), prose("x", 25)) == []
    assert len(shared(found.ignore(marks), prose("x", 26))) == 1
    assert shared(pickle.loads(pickle.dumps(found.ignore(marks))), prose("x", 25)) == []


def test_an_equal_hash_is_not_an_equal_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(hashes: words.Hashes, n: int) -> words.Hashes:
        return words.ngrams(hashes, n) >> np.uint64(64 - 6)

    monkeypatch.setattr(contamination, "ngrams", colliding)
    monkeypatch.setattr(lookup, "ngrams", colliding)
    monkeypatch.setattr(lookup, "library", lambda: None)
    found = index(tmp_path, [{"text": prose("x", 60)}], common=1000)
    text = prose("a", 500)
    assert found.lookup.search(words.units(text).hashes).shape[1] > 100
    assert found.find(text) == []


def test_reading_the_places_wrongly_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # the seeded fault
    found = index(tmp_path, [{"text": prose("x", 60)}])
    whole = contamination.folded
    monkeypatch.setattr(contamination, "folded", lambda text, units, first, last: whole(text, units, first, last)[1:])
    assert found.find(prose("x", 60)) == []


# ------------------------------------------------------------------------------------------------ the step


def test_a_part_is_cut_out_with_its_margin(tmp_path: Path) -> None:
    found = index(tmp_path, [{"q": QUESTION}])
    before, behind = prose("before", 100), prose("behind", 100)
    step = pickle.loads(pickle.dumps(Decontaminate(found, margin=20)))
    left = step(document(f"{before}\n\n{QUESTION}\n\n{behind}"))
    assert left.text == f"{prose('before', 98)} {behind.removeprefix('behind0 behind1 behind2 ')}"  # whole words
    assert left.meta == {"id": 7, "decontaminated": 1}
    clean = document(before)
    assert step(clean) is clean


def test_a_document_goes_where_little_is_left(tmp_path: Path) -> None:
    found = index(tmp_path, [{"q": QUESTION}])
    text = f"{prose('before', 100)} {QUESTION} {prose('behind', 100)}"
    many = " ".join([f"{prose(f'part{i}x', 100)} {QUESTION}" for i in range(11)])
    for step, given in (
        (Decontaminate(found, "remove"), text),
        (Decontaminate(found), QUESTION),
        (Decontaminate(found), many),
        (Decontaminate(found, shortest=2000), text),
    ):
        gone = step(document(given))
        assert isinstance(gone, Removed)
        assert gone.reason == "contaminated"
        assert f"quiz, item 1: {QUESTION}" in gone.detail
    with pytest.raises(UsageError, match="`action` is cut or remove: got 'drop'"):
        Decontaminate(found, "drop")


def test_the_report_counts_items_and_shows_where_they_stand(tmp_path: Path) -> None:
    found = index(tmp_path, [{"q": QUESTION}, {"q": SHORT}, {"q": "too short"}, {"q": prose("x", 20)}])
    overlaps = Overlaps(found)
    for line, text in enumerate([QUESTION, prose("a", 30), f"{QUESTION}\n\n{prose('c', 9)}\n\n{SHORT}"], 1):
        overlaps.add(document(text, line), found.find(text))
    report = overlaps.as_json()
    assert report["sets"] == {"quiz": {"items": 4, "too_short": 1, "dirty": 2, "part": 0.5}}
    assert (report["documents"], report["contaminated"]) == (3, 2)
    assert [(part["line"], part["items"][0]["number"]) for part in report["overlaps"]] == [(1, 1), (3, 1), (3, 2)]
    assert "quiz" in overlaps.as_text()
    assert f"quiz, item 2 in some.jsonl, line 3: {SHORT}" in overlaps.as_text()


# ------------------------------------------------------------------------------------------------ evaluation files


def test_all_kinds_of_evaluation_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.csv").write_text('"one, two",A\nthree,B\n')
    (tmp_path / "a" / "list.json").write_text(
        json.dumps({"version": "1", "examples": [{"in": "x", "out": ["y", 3]}] * 2})
    )
    (tmp_path / "page.txt").write_text("\ufeffwhole page\n")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "README.md").write_text("no")
    with gzip.open(tmp_path / "zipped.jsonl.gz", "wt") as file:
        file.write('{"q": {"deep": ["u\\u2028v"]}, "id": "w"}\n\n')
    found = {e.name: [item.texts for item in e.items()] for e in evaluations([tmp_path])}
    assert found == {
        "a/rows": [("one, two", "A"), ("three", "B")],
        "a/list": [("x", "y"), ("x", "y")],
        "page": [("whole page\n",)],
        "zipped": [("u\u2028v", "w")],
    }
    (zipped,) = evaluations([tmp_path / "zipped.jsonl.gz"])
    assert [item.texts for item in zipped.items(["id"])] == [("w",)]
    assert [item.texts for item in zipped.items(["deep"])] == [("u\u2028v",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": "x"}\n{"q": ', "line 2: not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8 text .byte 0"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00", "not a whole gzip file"),
        ("a.jsonl", b'{"n": 1}\n', "no text to compare"),
    ],
)
def test_evaluation_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Index.build(evaluations([tmp_path]), tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_evaluation_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation file or folder"):
        evaluations([tmp_path / "none"])
    with pytest.raises(DataError, match=r"No \.jsonl, .*\.txt file"):
        evaluations([tmp_path])
    with pytest.raises(DataError, match="was named"):
        evaluations([])
    with pytest.raises(DataError, match="not an index"):
        Index(tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", ["some text"])
    with pytest.raises(DataError, match=r"in the fields txt\. Did you mean 'text'"):
        Index.build(evaluations([path]), tmp_path / "index", fields=["txt"])


# ------------------------------------------------------------------------------------------------ the verb


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = f"{prose('before', 100)} {QUESTION} {prose('behind', 100)}"
    source = write_jsonl(tmp_path / "some.jsonl", [long, prose("a", 30), QUESTION])
    quiz = write_jsonl(tmp_path / "quiz.jsonl", [QUESTION, prose("x", 20)])
    out = tmp_path / "out"
    command = ["data", "decontaminate", str(source), "--against", str(quiz), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 documents removed" in said
    assert "2 of 3 documents share 13 words" in said
    assert (out / "report.txt").read_text(encoding="utf-8") == said
    left = [json.loads(line)["text"] for line in (out / "documents.jsonl").read_text().splitlines()]
    assert left[1:] == [prose("a", 30)]
    assert "river" not in left[0]
    assert Index(out / "index").find(left[0]) == []
    assert main(command) == 2
    capsys.readouterr()
    assert main([*command, "--overwrite", "--action", "remove", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["removed"], found["sets"]["quiz"]["dirty"]) == (2, 1)


@pytest.mark.slow
def test_lambada_in_the_classic_books(tmp_path: Path) -> None:
    found = Index.build(evaluations([archive("tasks/eval/lambada_openai.jsonl")]), tmp_path / "index", n=8)
    overlaps = Overlaps(found)
    with archive("pretrain/classic_books.jsonl").open(encoding="utf-8") as file:
        for line, record in enumerate(list(file)[350:500], 351):
            book = document(json.loads(record)["text"], line)
            overlaps.add(book, found.find(book.text))
    shown = [part["text"] for part in overlaps.parts]
    assert any("poor horses too" in text for text in shown)  # of Northanger Abbey
    assert any(
        "I would not lose that stick for the world" in text for text in shown
    )  # of The Hound of the Baskervilles
    assert overlaps.sets()["lambada_openai"]["dirty"] >= 10
