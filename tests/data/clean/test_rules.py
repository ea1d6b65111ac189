"""The published rules: each finds what it is for, at its threshold and not before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openbook.config import load, to_toml
from openbook.data.clean import STEPS, build
from openbook.data.clean.rules import C4, FineWeb, GopherQuality, GopherRepetition, Rules
from openbook.data.clean.statistics import count_reference
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import ConfigError, DataError
from tests.archive import archive


def document(text: str) -> Document:
    return Document(text, Path("a.txt"), 1, 1)


GOOD = """A boat lay on the shore for many winters, and nobody knew whose it was.
Old people in the village said that a sailor had left it to his daughter, who never came.
Children, of course, made it a castle; they fought battles with sticks until supper called them home.
One spring somebody painted its name again in blue letters: it was called Patience.
From then on strangers stopped to take pictures, and the baker sold them warm bread beside the harbour wall.
What would the sailor have thought, seeing so many visitors around his small vessel?"""


def reasons(text: str, rules: Rules | None = None) -> set[str]:
    return {removed.reason for removed in (rules or Rules()).broken(text)}


def test_good_text_breaks_no_rule() -> None:
    given = document(GOOD)
    assert Rules()(given) is given


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The cat and the dog.", "gopher quality: words"),
        ("x y the of " * 60, "gopher quality: mean word length"),
        (GOOD.replace("e ", "e # "), "gopher quality: hash signs"),
        (GOOD.replace(",", "…").replace("e ", "e... "), "gopher quality: ellipses"),
        ("\n".join(f"• the number and {i} of {i * 7} that" for i in range(30)), "gopher quality: bullet lines"),
        ("\n".join(f"the number and {i} of {i * 7} that..." for i in range(30)), "gopher quality: ellipsis lines"),
        (" ".join(f"the {i} 10{i} of" for i in range(100)), "gopher quality: words with a letter"),
        ("word " + " ".join(f"thing{i}" for i in range(100)), "gopher quality: stop words"),
        (GOOD + "\n" + GOOD, "gopher repetition: lines"),
        (GOOD + "\n\n" + GOOD, "gopher repetition: paragraphs"),
        (GOOD + "\n" + GOOD, "gopher repetition: characters in lines"),
        (GOOD + "\n\n" + GOOD, "gopher repetition: characters in paragraphs"),
        (
            GOOD.replace(" the ", " buttercup lemonade ").replace(" it ", " buttercup lemonade "),
            "gopher repetition: top 2-gram",
        ),
        (GOOD + " " + GOOD, "gopher repetition: repeated 10-grams"),
        (GOOD.replace(".", "").replace("?", ""), "fineweb: lines that end a sentence"),
        (GOOD + "\n" + GOOD.split("\n")[0], "fineweb: characters in duplicate lines"),
        (GOOD.replace(", ", ",\n").replace(" that ", "\n").replace(" in ", "\n"), "fineweb: short lines"),
    ],
)
def test_each_rule_is_broken_by_what_it_is_for(text: str, reason: str) -> None:
    repetition = GopherRepetition(max_top_grams=(0.15, 0.18, 0.16))
    assert reason in reasons(text, Rules(gopher_repetition=repetition, fineweb=FineWeb(max_short_lines=0.3)))


def test_a_threshold_is_the_last_value_that_stays() -> None:
    words = len(GOOD.split())
    assert not reasons(GOOD, Rules(gopher_quality=GopherQuality(min_words=words, max_words=words)))
    for quality in (GopherQuality(min_words=words + 1), GopherQuality(max_words=words - 1)):
        assert reasons(GOOD, Rules(gopher_quality=quality)) == {"gopher quality: words"}


def test_the_first_broken_rule_is_the_reason_and_says_the_number() -> None:
    assert Rules()(document("the cat and")) == Removed("gopher quality: words", "3, 50 at least")


def test_a_set_of_rules_can_be_left_out() -> None:
    assert reasons("the cat") >= {"gopher quality: words", "fineweb: lines that end a sentence"}
    assert not reasons("the cat", Rules(gopher_quality=None, fineweb=None))


def test_the_formulas_by_hand() -> None:
    """Rae et al., A.1.1, on a text small enough to count: words of 1, 2 and 3 characters."""
    found = count_reference("a bb a bb ccc\na bb a bb ccc\n\n#...\n", ["a", "zz"], short=5)
    assert (found.words, found.word_characters, found.stop_words) == (11, 22, 1)
    assert (found.lines, found.duplicate_lines, found.duplicate_line_characters) == (3, 1, 13)
    assert (found.paragraphs, found.duplicate_paragraphs) == (2, 0)
    assert found.top_grams == (4 * 3, 2 * 6, 2 * 8)  # "a bb" four times; "a bb ccc" and "bb a bb ccc" twice
    assert found.repeated_grams == (9, 0, 0, 0, 0, 0)  # the second line
    assert (found.hashes, found.ellipses, found.ellipsis_lines, found.short_lines) == (1, 1, 1, 1)


# ------------------------------------------------------------------------------------------------ C4

PAGE = """Home | About
The cat sat down on the mat.
It was a very warm day in May!
Did anybody see it at all there?
short."""


def test_c4_takes_lines_out_and_counts_them() -> None:
    found = C4()(document(PAGE))
    assert isinstance(found, Document)
    assert found.text == "\n".join(PAGE.split("\n")[1:4])
    assert found.meta["c4_lines_removed"] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PAGE + "\nLorem Ipsum dolor sit amet now.", "c4: lorem ipsum"),
        (PAGE + "\nint main() { return 0; }", "c4: curly bracket"),
        ("The cat sat down on the mat.", "c4: sentences"),
    ],
)
def test_c4_removes_pages(text: str, reason: str) -> None:
    found = C4()(document(text))
    assert isinstance(found, Removed)
    assert found.reason == reason


@pytest.mark.parametrize(
    "line",
    [
        "You must enable JavaScript to see this page.",
        "By going on you accept our Privacy Policy today.",
        "And so it went on and on...",
        "A line that has no end mark",
        "Too few words.",
        "One word is " + "x" * 1001 + " far too long.",
    ],
)
def test_c4_removes_lines(line: str) -> None:
    found = C4()(document(f"{PAGE}\n{line}"))
    assert isinstance(found, Document)
    assert line not in found.text


def test_c4_takes_citation_marks_out_of_lines() -> None:
    found = C4()(document(PAGE.replace("mat.", "mat[12] here[citation needed].")))
    assert isinstance(found, Document)
    assert "the mat here." in found.text


def test_c4_keeps_paragraphs_apart() -> None:
    found = C4()(document(PAGE.replace("\nIt", "\n\nno\n\nIt") + "\n\n"))
    assert isinstance(found, Document)
    assert found.text.count("\n\n") == 1


def test_c4_removes_pages_with_bad_words(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("MAT\nvery cold\n\n")
    step = C4(bad_words=words)
    assert step(document(PAGE)) == Removed("c4: bad word", "m**")
    assert isinstance(step(document(PAGE.replace("mat", "matter"))), Document)
    cold = step(document(PAGE.replace("mat", "matter").replace("warm", "cold")))
    assert cold == Removed("c4: bad word", "v********")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        C4(bad_words=tmp_path / "latin")(document(PAGE))


# ------------------------------------------------------------------------------------------------ as configuration


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_written_and_read_back_as_toml(name: str, tmp_path: Path) -> None:
    given = {"model": "model.npz"} if name in ("perplexity", "quality") else {}
    step = build(name, given)
    assert step.name == name
    file = tmp_path / "step.toml"
    file.write_text(to_toml(step))
    assert load(type(step), file) == step


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'short'"):
        build("rules", {"fineweb": {"shrt": 3}})
    with pytest.raises(ConfigError, match="Did you mean 'rules'"):
        build("rulez", {})
    with pytest.raises(ConfigError, match="`sample` is at least 1"):
        build("language", {"sample": 0})
    with pytest.raises(ConfigError, match="Did you mean 'email'"):
        build("scrub", {"kinds": ["emails"]})
    assert build("rules", {"gopher_quality": "None"}) == replace(Rules(), gopher_quality=None)


@pytest.mark.slow
def test_the_archives_books_and_pages() -> None:
    """Most of an encyclopedia stays; lists and tables go, and books by their length alone."""
    import json

    pages = [json.loads(line)["text"] for line in archive("pretrain/wikipedia_pages.jsonl").open(encoding="utf-8")]
    kept = sum(isinstance(Rules()(document(text)), Document) for text in pages)
    assert 0.75 < kept / len(pages) < 0.9
    with archive("pretrain/classic_books.jsonl").open(encoding="utf-8") as lines:
        books = [json.loads(next(lines))["text"] for _ in range(20)]
    assert {reason for text in books for reason in reasons(text)} == {"gopher quality: words"}
