"""The audit: what is counted where the counts are known, weights that reach their targets, and the verb."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbook.cli import main
from openbook.config import from_tree
from openbook.data.audit.balance import OTHERS, Balance, balance
from openbook.data.audit.count import Counts, bucket, length_of
from openbook.data.audit.report import page, report, shares_of
from openbook.data.audit.topics import find_topics
from openbook.data.audit.words import lists
from openbook.data.documents import Document
from openbook.errors import DataError, UsageError
from openbook.train.recipe import DataPart
from tests.data.tiny import write_jsonl

WAR = "The army lost the battle, and the soldiers of the regiment fled under the guns of the enemy. "
BALL = "The team scored a late goal, and the players of the season won the league for their coach. "


def document(text: str, **meta: object) -> Document:
    return Document(text, Path("some.jsonl"), 1, 0, meta)


def counted(*texts: str) -> Counts:
    counts = Counts()
    for text in texts:
        counts.add(document(text))
    return counts


def test_what_is_counted() -> None:
    counts = counted(
        "She met her mother in South Africa in 1994. The man from New Zealand, a Zealander, left in 2003.",
        "us and turkey; he paid 1,500 or 1500.25 for 12345 nails, in 1999.",
    )
    assert counts.size.documents == 2
    assert counts.groups["gender", "women", "her"] == 1
    found = report(counts)
    assert {g: one["words"] for g, one in found["groups"]["gender"].items()} == {"women": 3, "men": 2}
    assert found["groups"]["gender"]["women"]["documents"] == 1
    assert found["countries"] == {"South Africa": 1, "New Zealand": 1}
    assert found["regions"] == {"Africa": 1, "Oceania": 1}
    assert found["decades"] == {"1990": 2, "2000": 1}
    assert counts.size.words == 26
    assert page(found)


def test_cells_and_their_shares() -> None:
    counts = Counts(source_field="where", language=lambda _: "xx")
    places = [
        counts.add(document(WAR * 3, where="a", language="en")),
        counts.add(document(BALL * 3 + "She said. " * 9)),
        counts.add(document("Nothing in particular happened to anyone.")),
    ]
    assert [(p.source, p.language, p.topic, p.gender) for p in places] == [
        ("a", "en", "war", "none"),
        ("some", "xx", "sport", "women"),
        ("some", "xx", "other", "none"),
    ]
    assert counts.place(document(WAR * 3, where="a", language="en")) == places[0]
    shares = shares_of(counts.cells, "topic")
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["sport"] > shares["war"] > shares["other"]


def test_long_documents_are_looked_at_in_parts_and_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.data.audit.count.SLICE", 200)
    counts = counted("The old captain told his daughter of France. " * 600)
    assert counts.groups["gender", "women", "daughter"] == 600
    assert counts.countries["France"] == 600
    assert counts.size.words == 8 * 600
    assert counts.size.documents == 1
    assert counted("x" * 5000).size.words == 25, "a word without an end is cut"


def test_the_sample_does_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.data.audit.count.SAMPLED", 10)
    texts = [f"document {chr(97 + n)}{chr(98 + n)} of many words" for n in range(24)]
    one, other = counted(*texts), counted(*reversed(texts))
    assert len(one.sample) == 10
    assert one.sample == other.sample


def test_words_lean_to_whom_they_stand_near() -> None:
    filler = "stone " * 25
    counts = counted(
        *[
            f"She was a nurse and her kitchen was home. {filler} He was an engineer and his office was work."
            for _ in range(20)
        ],
        *[f"{filler} The teacher and he talked. {filler} The teacher and she talked. {filler}" for _ in range(20)],
    )
    found = report(counts)
    ranked = {one["word"]: one for one in found["near_women_or_men"]["occupations"]}
    assert ranked["nurse"]["leaning"] > 2 < -ranked["engineer"]["leaning"]
    assert abs(ranked["teacher"]["leaning"]) < 0.2
    assert ranked["nurse"]["z"] > 2 < -ranked["engineer"]["z"]
    assert ranked["nurse"]["men"] == 0


def contrast(women: list[str], men: list[str]) -> Mapping[str, float]:
    filler = " stone" * 25
    texts = [f"She {word}{filler}" for word in women for _ in range(20)]
    texts += [f"He {word}{filler}" for word in men for _ in range(20)]
    found = report(counted(*texts))["contrasts"]
    return next(one for one in found if one["name"].startswith("family"))


def test_contrasts_of_two_sets() -> None:
    one = next(c for c in lists().contrasts if c.name.startswith("family"))
    first, second = sorted(one.first)[:8], sorted(one.second)[:8]
    apart = contrast(first, second)
    assert apart["effect"] > 1.5
    assert apart["p"] < 0.01
    mixed = contrast(first[:4] + second[:4], first[4:] + second[4:])
    assert abs(mixed["effect"]) < 0.3
    assert mixed["p"] > 0.3
    assert contrast(first[:2], second)["effect"] is None


def test_topics_are_found() -> None:
    draw = random.Random(0)
    words = [[f"{kind}{n}" for n in range(30)] for kind in ("sea", "law", "gas")]
    common = [f"word{n}" for n in range(40)]
    texts = [[*draw.choices(words[n % 3], k=20), *draw.choices(common, k=30)] for n in range(90)]
    found = find_topics(texts, 3, seed=1)
    assert [round(topic.share, 2) for topic in found] == [0.33, 0.33, 0.33]
    assert {word[:3] for topic in found for word in topic.words} == {"sea", "law", "gas"}
    assert all(len({word[:3] for word in topic.words}) == 1 for topic in found)
    assert find_topics([], 3) == []
    assert find_topics([["one"], ["two"]], 3) == []


def test_lengths_are_in_their_buckets() -> None:
    for words in [0, 1, 2, 3, 7, 100, 1023, 1024, 1025, 10**6]:
        assert length_of(bucket(words)) <= words * (1 + 1e-9) < length_of(bucket(words) + 1) * (1 + 1e-9) + (words == 0)


# --- weights --------------------------------------------------------------------------------------------------------


def units_of(cells: list[tuple[str, str]]) -> list[dict[str, dict[str, float]]]:
    return [{"x": {x: 1.0}, "y": {y: 1.0}} for x, y in cells]


def check_balance(found: Balance, mass: list[float], targets: Mapping[str, Mapping[str, float]], bound: float) -> None:
    weights = found.weights
    assert np.dot(mass, weights) == pytest.approx(sum(mass))
    assert (weights <= bound + 1e-9).all()
    assert (weights >= 1 / bound - 1e-9).all()
    for axis, of in targets.items():
        for category, share in of.items():
            assert found.reached[axis][category] == pytest.approx(share, abs=1e-6), "a target is missed"


CELLS = [(x, y) for x in "abc" for y in "uv"]


@settings(max_examples=40)
@given(st.lists(st.floats(1, 100), min_size=6, max_size=6), st.lists(st.floats(0.5, 2), min_size=5, max_size=5))
def test_targets_that_can_be_reached_are_reached_and_no_weights_are_nearer(mass: list[float], by: list[float]) -> None:
    factors = dict(zip("abcuv", by, strict=True))
    true = np.array([factors[x] * factors[y] for x, y in CELLS])
    true *= sum(mass) / np.dot(mass, true)
    shares = true * mass / sum(mass)
    targets = {
        "x": {x: float(sum(s for s, cell in zip(shares, CELLS, strict=True) if cell[0] == x)) for x in "ab"},
        "y": {y: float(sum(s for s, cell in zip(shares, CELLS, strict=True) if cell[1] == y)) for y in "uv"},
    }
    found = balance(
        mass, units_of(CELLS), {**targets, "x": {**targets["x"], "c": 1 - sum(targets["x"].values())}}, bound=50
    )
    check_balance(found, mass, targets, 50)
    # weights that are a product over the axes are the nearest in relative entropy (Csiszar 1975), and there is one
    assert found.weights == pytest.approx(true, rel=1e-4)


def test_others_keep_their_proportions() -> None:
    found = balance([10, 20, 30, 40, 50, 60], units_of(CELLS), {"x": {"a": 0.5}})
    assert found.reached["x"] == {"a": pytest.approx(0.5), OTHERS: pytest.approx(0.5)}
    assert found.weights[2:].tolist() == pytest.approx([found.weights[2]] * 4)


def test_whole_sources_are_balanced_as_far_as_they_can() -> None:
    sources = [{"topic": {"war": 0.8, "sport": 0.2}}, {"topic": {"war": 0.1, "sport": 0.9}}]
    found = balance([100, 100], sources, {"topic": {"war": 0.3}})
    assert found.reached["topic"]["war"] == pytest.approx(0.3)
    held = balance([100, 100], sources, {"topic": {"war": 0.99}}, bound=1.5)
    assert held.weights.tolist() == pytest.approx([1.5 - 1 / 6, 2 / 3], abs=1e-6)
    assert held.missed > 0.3


def test_fault_weights_that_do_not_balance() -> None:
    mass = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    targets = {"x": {"a": 0.5}}
    found = balance(mass, units_of(CELLS), targets)
    check_balance(found, mass, targets, 5)
    with pytest.raises(AssertionError, match="a target is missed"):
        check_balance(balance(mass, units_of(CELLS), {"y": {"u": 0.5}, "x": {"a": 0.4}}), mass, targets, 5)


def test_targets_that_make_no_sense() -> None:
    units = units_of(CELLS)
    for targets, says in (
        ({"x": {"a": 0.7, "b": 0.7}}, "add up to 1 at most"),
        ({"x": {"a": -0.1}}, "from 0 to 1"),
        ({"y": {"u": 0.2, "v": 0.2}}, "name all there is"),
    ):
        with pytest.raises(UsageError, match=says):
            balance([1] * 6, units, targets)
    with pytest.raises(DataError, match=r"No text is of x 'aa'.*There is: a, b, c"):
        balance([1] * 6, units, {"x": {"aa": 0.5}})
    with pytest.raises(UsageError, match="bound"):
        balance([1] * 6, units, {"x": {"a": 0.5}}, bound=0.5)


# --- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    write_jsonl(folder / "front.jsonl", [WAR * 3 + f"Day {n}." for n in range(30)])
    write_jsonl(folder / "field.jsonl", [BALL * 3 + f"Day {n}." for n in range(10)])
    return folder


def test_the_verb_balances_and_splits(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, parts = files.parent / "audit.json", files.parent / "parts"
    words = ["data", "audit", str(files), "--no-languages", "--out", str(out), "--split", str(parts), "--json"]
    assert main([*words, "--target.topic.sport", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["weights"]["by_cell"]["reached"]["topic"]["sport"] == pytest.approx(0.5)
    assert found["weights"]["by_source"]["mixture"] == {"field": pytest.approx(0.5), "front": pytest.approx(0.5)}
    data = from_tree(DataPart, tomllib.loads((parts / "mixture.toml").read_text())["data"], source="mixture.toml")
    assert {source.called: source.weight for source in data.sources} == {
        "field-sport": pytest.approx(0.5, abs=1e-5),
        "front-war": pytest.approx(0.5, abs=1e-5),
    }
    assert sum(len(Path(source.path).read_text().splitlines()) for source in data.sources) == 40
    recipe = found["weights"]["by_source"]["recipe"]
    assert len(from_tree(DataPart, tomllib.loads(recipe)["data"], source="the report").sources) == 2


def test_the_verb_says_it_in_words(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", str(files), "--no-languages", "--target.topic.war", "0.6"]) == 0
    said = capsys.readouterr().out
    assert "40 documents" in said
    assert "balanced by cells: topic war 60.0%, (others) 40.0%" in said
    assert "balanced by whole sources" in said


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--target.subject.war", "0.5"], 2, "no axis 'subject'"),
        (["--target.topic", "0.5"], 2, "AXIS.CATEGORY"),
        (["--target.topic.ward", "0.5"], 1, "Did you mean 'war'"),
        (["--split", "x"], 2, "give one"),
        (["--target.topic.war", "much"], 1, "topic.war"),
    ],
)
def test_what_the_verb_refuses(
    files: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, says: str
) -> None:
    assert main(["data", "audit", str(files), "--no-languages", *words]) == status
    assert says in capsys.readouterr().err


def test_no_list_holds_a_word_twice_in_an_axis() -> None:
    """Else one word would speak of two groups."""
    for groups in lists().groups.values():
        every = [word for words in groups.values() for word in words]
        assert len(every) == len(set(every))
    assert all(word == word.lower() for words in lists().topics.values() for word in words)


def test_what_cannot_be_read_is_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "good.jsonl", [WAR, BALL]).open("a").write("no record\n")
    (tmp_path / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    assert main(["data", "audit", str(tmp_path), "--no-languages", "--topics", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == 2
    assert [bad.partition(":")[0].rpartition("/")[2] for bad in found["unread"]] == [
        "lost.jsonl'", "good.jsonl', line 3"
    ]  # fmt: skip
    assert main(["data", "audit", str(tmp_path), "--no-languages", "--topics", "1"]) == 0
    assert capsys.readouterr().out.count("could not be read") == 2
