"""Exact and paragraph duplicates, repeated parts, and a corpus without them: `openbook data dedupe`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook.cli import main
from openbook.data.dedupe import spans
from openbook.data.dedupe.corpus import Paragraphs, Rules, Texts, dedupe
from openbook.data.dedupe.exact import digest, digests, first_of
from openbook.data.dedupe.overlap import Overlap, Within, covered, windows, winnow
from openbook.data.dedupe.paragraphs import paragraph_hashes, paragraphs, parts, repeated
from openbook.data.dedupe.words import ngrams, units
from openbook.data.documents import Document
from openbook.errors import DataError, UsageError
from tests.archive import archive
from tests.data.tiny import write_jsonl

QUIZ = "Which of these nine words is not in the other?"
NOTICE = "This page was printed by the society of friends of the old mill, who thank all of you."


def prose(name: str, count: int) -> str:
    """Words that stand nowhere else."""
    return " ".join(f"{name}{i}" for i in range(count))


# ------------------------------------------------------------------------------------------------ exact


def test_equal_but_for_case_punctuation_and_white_space() -> None:
    texts = ["One two.", "three", "one\n\nTWO", "One two.", "", "…", "!", "", "onetwo", "ＯＮＥ two"]
    assert first_of(digests(texts)).tolist() == [0, 1, 0, 0, 4, 5, 6, 4, 8, 0]
    assert first_of(digests(texts, normalise=False)).tolist() == [0, 1, 2, 0, 4, 5, 6, 4, 8, 9]
    assert digest("\ud800") != digest("\ud801")  # half characters are no reason to fail
    assert first_of(digests([])).tolist() == []


@given(st.lists(st.sampled_from(["a", "b", "c", "d e", "D, e"]), max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_first_of_equals(texts: list[str]) -> None:
    plain = [text.lower().replace(",", "") for text in texts]
    assert first_of(digests(texts)).tolist() == [plain.index(text) for text in plain]


# ------------------------------------------------------------------------------------------------ paragraphs


@given(st.text(st.sampled_from("ab \n\t\r世"), max_size=60), st.sampled_from(["paragraphs", "lines"]))
@settings(max_examples=80, deadline=None)
def test_paragraphs_together_are_the_text(text: str, by: str) -> None:
    pieces = paragraphs(text, by=by)
    assert "".join(pieces) == text
    assert all(piece.strip() for piece in pieces) or len(pieces) == 1
    assert len(paragraph_hashes(text, 1, by=by)) == len(pieces)
    marked = parts(text, np.ones(len(pieces), bool), by=by)
    assert [text[start:end] for start, end in marked.tolist()] == pieces


def test_a_text_without_some_paragraphs_is_tidy() -> None:
    text = "  one\n\ntwo\nstill two\n \n\nthree\n"
    assert paragraphs(text) == ["  one\n\n", "two\nstill two\n \n\n", "three\n"]

    def left(*goes: bool) -> str:
        return spans.without(text, parts(text, np.array(goes)))

    assert left(False, True, False) == "  one\n\nthree\n"
    assert left(False, False, True).rstrip() == "  one\n\ntwo\nstill two"
    assert left(True, True, True) == ""
    with pytest.raises(UsageError, match="marks 2 paragraphs, the text has 3"):
        parts(text, np.array([True, False]))


def test_repeated_paragraphs_of_a_corpus() -> None:
    texts = [f"{prose('a', 20)}\n\n{NOTICE}\n\nshort", f"{NOTICE.upper()}\n\nshort\n\n{prose('b', 20)}", NOTICE]
    hashes = np.concatenate([paragraph_hashes(text, 12) for text in texts])
    assert repeated(hashes).tolist() == [False, False, False, True, False, False, True]
    assert repeated(hashes, above=2).tolist() == [False, True, False, True, False, False, True]
    assert not repeated(hashes, above=3).any()


# ------------------------------------------------------------------------------------------------ overlap


def test_a_shared_part_is_found_word_for_word() -> None:
    shared = prose("s", 30)
    within = Within([f"{prose('a', 50)} «{shared}!» {prose('b', 20)}", prose("c", 40)], Overlap(words=20))
    parts, share = within.look_all([f"{prose('d', 200)}\n{shared.upper()}\n{prose('e', 10)}", prose("c", 19)]).parts(0)
    assert [within.texts[0][start:end] for start, end in parts] == [f"«{shared}!»"]
    assert share == pytest.approx(0.3)
    assert within.parts(1)[1] == 0


def test_what_a_text_repeats_of_itself_counts_once_and_goes_with_what_others_have() -> None:
    text, overlap = f"{prose('s', 30)} {prose('a', 40)} {prose('s', 30)}", Overlap(words=30)
    found = units(text)
    hashes, places = windows(found, overlap)
    assert (hashes == 0).sum() == 1
    parts, share = covered(text, found, places[:1], overlap)
    assert parts.tolist() == [[0, len(prose("s", 30))], [len(text) - len(prose("s", 30)), len(text)]]
    assert share == pytest.approx(0.6)


@given(st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_winnowing_keeps_one_of_so_many_neighbours(every: int, seed: int) -> None:
    hashes = np.random.default_rng(seed).integers(0, 50, 400).astype(np.uint64)
    kept = winnow(hashes, every)
    assert np.diff(kept, prepend=-1).max() <= every
    assert len(hashes) - kept[-1] <= every


@pytest.mark.parametrize("every", [1, 7, 26])
def test_what_is_long_enough_is_found_however_much_is_left_out(every: int) -> None:
    overlap = Overlap(words=25, every=every)
    draw = np.random.default_rng(every)
    for _ in range(20):
        shared, before, behind = prose("s", 25 + every - 1), int(draw.integers(0, 60)), int(draw.integers(0, 60))
        text = " ".join([prose("a", before), shared, prose("b", behind)])
        known = windows(units(" ".join([prose("c", 40), shared])), overlap)[0]
        found = units(text)
        hashes, places = windows(found, overlap)
        parts, _ = covered(text, found, places[np.isin(hashes, known)], overlap)
        assert len(parts) == 1
        assert set(text[slice(*parts[0])].split()) <= set(shared.split())


def test_leaving_out_every_other_window_is_found() -> None:  # the seeded fault
    hashes = ngrams(units(prose("s", 400)).hashes, 5)
    assert np.diff(np.arange(0, len(hashes), 14)).max() > 7
    assert np.diff(winnow(hashes, 7)).max() <= 7


def test_what_is_left_is_glued_with_the_widest_space() -> None:
    assert spans.glue(["one ", " two", "\n three\n", "\nfour"]) == "one two\nthree\n\nfour"
    assert spans.cut("abc def ghi", np.array([[4, 7]])) == ["abc ", " ghi"]
    assert spans.widen(np.array([[4, 7]]), 1, "abc def ghi").tolist() == [[3, 8]]
    assert spans.widen(np.array([[4, 7]]), 2, "abc def ghi").tolist() == [[0, 11]]
    assert spans.widen(np.array([[50, 60]]), 9, "世" * 200).tolist() == [[41, 69]]
    assert spans.merge(np.array([0, 2, 9]), np.array([5, 3, 10])).tolist() == [[0, 5], [9, 10]]


# ------------------------------------------------------------------------------------------------ a corpus


def read(texts: list[str]) -> list[Document]:
    return [Document(text, Path("some.jsonl"), line, 0, {"id": line}) for line, text in enumerate(texts, 1)]


def kept(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_document_that_goes_repeats_nothing_and_parts_are_cut_out(tmp_path: Path) -> None:
    a, b, shared = prose("a", 100), prose("b", 100), prose("s", 60)
    near = a.replace("a7 ", "x ") + f"\n\n{NOTICE}"  # goes as a near duplicate: its notice repeats nothing
    texts = [
        a,
        a.upper(),
        near,
        f"{b}\n\n{NOTICE}\n",
        f"{prose('c', 150)}\n\n{NOTICE}\n\n{shared}",
        f"{prose('d', 150)} {shared} end.",
    ]
    rules = Rules(paragraphs=Paragraphs(), overlap=Overlap(words=50, shortest=1))
    report = dedupe(lambda: read(texts), tmp_path / "out", rules)
    assert [(row["id"], row["text"]) for row in kept(tmp_path / "out")] == [
        (1, a),
        (4, f"{b}\n\n{NOTICE}\n"),
        (5, f"{prose('c', 150)}\n\n{shared}"),
        (6, f"{prose('d', 150)} end."),
    ]
    assert (report.removed, report.documents, report.kept) == ({"exact": 1, "near": 1}, 6, 4)
    assert report.cut == {"paragraphs": len(NOTICE) + 2, "overlap": len(shared) + 1}
    sample = json.loads((tmp_path / "out" / "report.json").read_text())["samples"]["near"][0]
    assert (sample["document"]["line"], sample["like"]["line"]) == (3, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["documents.jsonl", "report.json"]


def test_a_document_that_is_mostly_repeated_goes(tmp_path: Path) -> None:
    texts = [prose("a", 300), f"{prose('a', 90)} {prose('b', 10)}", f"{prose('c', 60)} {prose('c', 60)}"]
    report = dedupe(lambda: read(texts), tmp_path / "out", Rules(near=None, overlap=Overlap(share=0.8)))
    assert [row["id"] for row in kept(tmp_path / "out")] == [1, 3]  # what a document repeats of itself stays
    assert report.removed == {"exact": 0, "overlap": 1}


def test_a_corpus_that_changes_while_it_is_read(tmp_path: Path) -> None:
    lengths = iter([2, 3, 2, 1])

    def changing() -> Iterator[Document]:
        yield from read([prose("a", 9), prose("b", 9), prose("c", 9)][: next(lengths)])

    with pytest.raises(DataError, match="has grown"):
        dedupe(changing, tmp_path / "out", Rules())
    with pytest.raises(DataError, match="has lost documents"):
        dedupe(changing, tmp_path / "out", Rules())
    with pytest.raises(DataError, match="no document"):
        dedupe(list, tmp_path / "out", Rules())
    assert list(tmp_path.iterdir()) == []


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "some.jsonl", [prose("a", 60), prose("b", 60), prose("A", 60)])
    out = tmp_path / "out"
    assert main(["data", "dedupe", str(source), "--out", str(out), "--paragraphs", "--overlap", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["kept"], found["removed"]) == (3, 2, {"exact": 1, "near": 0})
    assert found["sources"][str(source)]["kept"] == 2
    assert main(["data", "dedupe", str(source), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["data", "dedupe", str(source), "--out", str(out), "--overwrite"]) == 0
    assert re.search(
        r"2 of 3 documents stay, with 66\.\d\d% of the characters\n +exact +1 documents", capsys.readouterr().out
    )


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "some.jsonl"
    source.write_text(
        json.dumps({"text": prose("a", 9)}) + '\n{"text": 3}\nnothing\n' + json.dumps({"text": "b"}) + "\n"
    )
    (tmp_path / "broken.txt.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    assert main(["data", "dedupe", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kept"], len(found["unread"])) == (2, 3)
    quiz = write_jsonl(tmp_path / "quiz.jsonl", [QUIZ])
    command = ["data", "decontaminate", str(source), "--against", str(quiz), "--out", str(tmp_path / "clean")]
    assert main(command) == 0
    assert "2 could not be read: 'some.jsonl', line 2" in capsys.readouterr().out.replace(f"{tmp_path}/", "")


@pytest.mark.slow
def test_a_third_of_tinyshakespeare_stands_in_the_classic_books() -> None:
    text = archive("pretrain/tinyshakespeare.txt").read_text(encoding="utf-8")
    within = Within([text], Overlap(words=20))
    with archive("pretrain/classic_books.jsonl").open(encoding="utf-8") as file:
        for line in file:
            if "Shakespeare" in line[:200]:
                within.look(json.loads(line)["text"])
    parts, share = within.parts(0)
    assert 0.27 < share < 0.28  # of the words; 0.30 of the lines
    left = spans.glue(spans.cut(text, parts))
    assert Within([left], Overlap(words=20)).look_all([text]).parts(0)[1] == pytest.approx(1, abs=0.01)
    assert len(left) / len(text) == pytest.approx(1 - share, abs=0.02)


@pytest.mark.parametrize("verb", [["dedupe"], ["decontaminate", "--against", "quiz.txt"]], ids=lambda verb: verb[0])
def test_a_foreign_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "The keeper of the lighthouse climbed the stairs every evening to light the old lamp."
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "quiz.txt").write_text(
        "What did the engineer say about the bridge when it fell into the river at noon?"
    )
    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    run = ["data", verb[0], "a.txt", *verb[1:], "--overwrite", "--out"]
    assert main([*run, "mine"]) == 2
    assert "nothing there was touched" in capsys.readouterr().err
    assert thesis.read_text() == "mine"
    assert main([*run, "new"]) == 0
    assert main([*run, "new"]) == 0


def test_nothing_to_compare_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"no document to compare.*empty\.txt.*0 bytes"):
        dedupe(Texts([tmp_path / "empty.txt"]), tmp_path / "out", Rules())
