"""Laws 2 and 3 of cleaning: what is fast is what it stands for, and a step's answer depends on its document alone.

Repair gives what ftfy gives on the whole text; the native statistics are the reference's; numbers are found in parts
of a text as in all of it; every step is pure, can be pickled, and takes time in proportion to the text.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openbook.data.clean import STEPS, personal, statistics
from openbook.data.clean.classify import Quality, train
from openbook.data.clean.grams import Grams, Perplexity
from openbook.data.clean.grams import train as train_grams
from openbook.data.clean.repair import Repair
from openbook.data.clean.statistics import Statistics, count, count_reference
from openbook.data.documents import Document
from openbook.data.steps import Removed, Step
from openbook.native import grams as native_grams
from openbook.native import textstats

# ------------------------------------------------------------------------------------------------ repair

ftfy = pytest.importorskip("ftfy")
# Characters of every kind that ftfy's test for mojibake names, and what else its fixes look for.
LOUD = "ÂÃÎÐàâéîóØÙŠœŒßÉšžŸ×√≈∂†‚„“”‘’‹›«»¡¿©®°±²³¼½µ€£¢¤¦¨¬¯ªº¶§–—…\xa0\xad·´│─╔▓вВЂГўРСЁѓΒΞΟβ€ā‡ƒˆ˜\ufffd\x80\x85\x9d"
PIECES = st.one_of(
    st.sampled_from(
        [*LOUD, *"ab Z.,!?1\n<&;", "&amp;", "&#233;", "&EACUTE;", "ﬁ", "ǆ", "ＡＢ", "ﾊ", "\r\n", "中", "ﬀ", "א"]
    ),
    st.sampled_from(["é", "“x”", "ü", "–", "中文", "Привет", "ñ\xa0"]).map(lambda s: s.encode().decode("latin-1")),
    st.sampled_from(["é", "“x”", "–", "č"]).map(lambda s: s.encode().decode("windows-1252", "replace")),
    st.sampled_from(["café", "naïve", "Œuvre", "Straße", "ЖИЗНЬ", "Ελλάδα", "said “no”—and", "<b>"]),
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


def whole(text: str, wanted: Repair) -> str:
    """ftfy on the whole text, with the fixes that Repair asks it for."""
    return str(
        ftfy.fix_text(
            text,
            unescape_html={"auto": "auto", "always": True, "never": False}[wanted.entities],
            fix_encoding=wanted.encoding,
            fix_c1_controls=wanted.encoding,
            fix_latin_ligatures=wanted.ligatures,
            fix_character_width=wanted.width,
            uncurl_quotes=wanted.quotes,
            fix_line_breaks=False,
            fix_surrogates=False,
            remove_terminal_escapes=False,
            remove_control_chars=False,
            normalization=None,
        )
    )


WANTED = [
    Repair(line_ends=False, controls=False, zero_width=False, normal_form="none"),
    Repair(line_ends=False, controls=False, zero_width=False, normal_form="none", quotes=True, width=True),
    Repair(line_ends=False, controls=False, zero_width=False, normal_form="none", entities="always", ligatures=False),
    Repair(line_ends=False, controls=False, zero_width=False, normal_form="none", entities="never", encoding=False),
]


@pytest.mark.parametrize("wanted", WANTED)
@given(text=TEXTS)
@settings(max_examples=120, deadline=None)
@example(text="ok\nÃ©&amp;\n<p>&amp;\n&amp;")
@example(text="le cœur, et Œ!\nx Â y")
def test_repair_of_some_lines_is_ftfy_on_all(wanted: Repair, text: str) -> None:
    assert wanted.repair(text) == whole(text, wanted)


def test_a_hazard_that_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:  # the seeded fault
    wanted = Repair()
    pairs = [f"{a}{b}{c}" for a in "xé" for b in LOUD for c in [*LOUD[::2], " ", "x"]] + ["un cœ ur"]
    assert all(wanted._mend(pair) == whole(pair, wanted) for pair in pairs)
    from openbook.data.clean import repair

    kept = repair._hazards(wanted)
    monkeypatch.setattr(repair, "_hazards", lambda _: kept[1:2])
    assert not all(wanted._mend(pair) == whole(pair, wanted) for pair in pairs)


# ------------------------------------------------------------------------------------------------ statistics

WORDS = st.sampled_from(
    ["the", "to", "a", "b", "…", "...", "....", "#", "•", "—", "“ja.”", "été", "中文", "1", "x" * 40, "𝒳"]
)
GAPS = st.sampled_from([" ", " ", " ", "\n", "\n\n", "\n \n", "\t", "\u3000", "\x1c", "  ", "\x85", "\u2028", "\r\n"])
DOCUMENTS = st.one_of(
    st.lists(st.tuples(WORDS, GAPS), max_size=60).map(lambda pairs: "".join(map("".join, pairs))),
    st.text(max_size=80),
    st.tuples(st.lists(WORDS, min_size=1, max_size=6), st.integers(1, 8)).map(lambda p: (" ".join(p[0]) + "\n") * p[1]),
)
STOP = ("the", "to", "été", "nowhere", "the")


@pytest.mark.skipif(textstats.library() is None, reason="no C++ compiler: the reference does the work")
@given(text=DOCUMENTS, short=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_native_statistics_are_the_references(text: str, short: int) -> None:
    assert count(text, STOP, short) == count_reference(text, STOP, short)


@pytest.mark.skipif(textstats.library() is None, reason="no C++ compiler: the reference does the work")
def test_a_repeated_gram_that_counts_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:  # the seeded fault
    def overlapping(words: list[str], lengths: list[int], n: int) -> int:
        seen: set[tuple[str, ...]] = set()
        total = 0
        for start in range(len(words) - n + 1):
            gram = tuple(words[start : start + n])
            total += sum(lengths[start : start + n]) if gram in seen else 0
            seen.add(gram)
        return total

    text = "one two three four five six seven " * 3
    assert count(text) == count_reference(text)
    monkeypatch.setattr(statistics, "_repeated", overlapping)
    assert count(text) != count_reference(text)


def test_without_a_compiler_the_reference_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textstats, "library", lambda: None)
    found = count("a b a b", ["b"])
    assert isinstance(found, Statistics)
    assert found == count_reference("a b a b", ["b"])


# ------------------------------------------------------------------------------------------------ numbers

NUMBERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "4111 1111 1111 1111",
                "378282246310005",
                "123-45-6789",
                "+44 20 7946 0958",
                "(212) 555-0187 x12",
                "12345678Z",
                "call 2125550187",
                "0490 75 40 81",
                "X1234567L",
                "nhs 943 476 5919",
                "1-212-555-0187",
                "529.982.247-25",
                "(",
            ]
        ),
        st.text("0123456789 -.()+xX", min_size=1, max_size=9),
        st.sampled_from([" and ", "\n", "word " * 30, "é", "x" * 120]),
    ),
    max_size=14,
).map("".join)


def everywhere(text: str) -> list[personal.Found]:
    """All kinds of numbers, looked for in the whole text."""
    finders = [(kind, find) for kind, some in personal.NUMBERS.items() for find in some]
    return [personal.Found(*span, kind) for kind, find in finders for span in find(text, 0, len(text))]


def in_parts(text: str) -> list[personal.Found]:
    finders = [(kind, find) for kind, some in personal.NUMBERS.items() for find in some]
    parts = list(personal._numbers(text))
    return [personal.Found(*span, kind) for kind, find in finders for part in parts for span in find(text, *part)]


@given(text=NUMBERS)
@settings(max_examples=100, deadline=None)
def test_numbers_are_found_in_parts_as_in_the_whole(text: str) -> None:
    assert in_parts(text) == everywhere(text)


def test_parts_that_are_too_short_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:  # the seeded fault
    text = "paid with 4111 1111 1111 1111 today"
    assert in_parts(text) == everywhere(text) != []
    monkeypatch.setattr(personal, "_LONGEST_NUMBER", 0)
    assert in_parts(text) != everywhere(text)


# ------------------------------------------------------------------------------------------------ every step


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """One of each, with small models where a step needs one."""
    folder = tmp_path_factory.mktemp("models")
    good = [
        f"The {a} of the {b} was seen by all of them, and it was good." for a in ("tree", "house") for b in "abcdefgh"
    ]
    train(good, [line.upper()[::-1] for line in good])[0].save(folder / "quality.npz")
    train_grams(good).save(folder / "grams.npz")
    made: list[Step] = [
        Perplexity(model=folder / "grams.npz", percentile=None),
        Quality(model=folder / "quality.npz", lowest=0.0),
    ]
    return [*made, *(STEPS[name]() for name in STEPS if name not in ("perplexity", "quality"))]


def document(text: str) -> Document:
    return Document(text, Path("a.txt"), 1, len(text), {"title": "kept"})


ODD = [
    "",
    " ",
    "\0",
    "\0" * 50,
    "\n" * 100,
    "x",
    "中" * 300,
    "\ufeff",
    "e\u0301",
    "🇩🇪👩‍👩‍👧",
    "a" * 5000,
    "{" * 100,
    "…" * 99,
]


def test_every_step_is_registered_here(steps: list[Step]) -> None:
    assert {step.name for step in steps} == set(STEPS)


def test_a_step_is_pure_and_can_be_pickled(steps: list[Step]) -> None:
    for step in steps:
        again = pickle.loads(pickle.dumps(step))
        for text in [*ODD, "The cat sat on the mat. " * 40, "Call (212) 555-0187, or mail me@example.org. " * 3]:
            given_document = document(text)
            found = step(given_document)
            assert found == step(document(text)) == again(document(text))
            assert isinstance(found, Document | Removed)
            if isinstance(found, Document):
                assert (found.path, found.line, found.end) == (given_document.path, 1, len(text))
                assert found.meta["title"] == "kept"
            else:
                assert found.reason


HOSTILE: dict[str, Callable[[int], str]] = {
    "one word": lambda n: "a" * n,
    "one word again and again": lambda n: "ab " * (n // 3),
    "digits": lambda n: "1" * n,
    "digits apart": lambda n: "1 " * (n // 2),
    "at signs": lambda n: "a@" * (n // 2),
    "dots": lambda n: "a.b@c." * (n // 6),
    "colons": lambda n: ":" * n,
    "addresses that do not end": lambda n: "://a:" * (n // 5),
    "keys that do not end": lambda n: "-----BEGIN PRIVATE KEY-----" * (n // 27),
    "tokens that do not end": lambda n: "eyJaaaaaaaaaaaa." * (n // 16),
    "accounts": lambda n: "DE00 0000 " * (n // 10),
    "entities that do not end": lambda n: "&#" * (n // 2),
    "wrongly decoded": lambda n: "Ã©" * (n // 2),
    "marks": lambda n: "a" + "\u0301\u0327" * (n // 2),
    "lines": lambda n: "ab\n" * (n // 3),
    "brackets": lambda n: "[1" * (n // 2),
    "different words": lambda n: " ".join(map(str, range(n // 6))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_step_takes_time_with_the_square_of_the_text(steps: list[Step], name: str) -> None:
    """Of 300,000 characters each step makes an end within a second; one that is quadratic would take an hour."""
    for step in steps:
        assert isinstance(step(document(HOSTILE[name](300_000))), Document | Removed)


@pytest.fixture(scope="module")
def model() -> Grams:
    source = random.Random(2)
    return train_grams(["".join(source.choices("abcdé \n", k=400)) for _ in range(20)], order=4)


PIECES_OF_BYTES = st.lists(
    st.one_of(st.sampled_from([b"abcd", b"\xc3\xa9", b"\n", b" "]), st.binary(max_size=4)), max_size=40
)


@pytest.mark.skipif(native_grams.library() is None, reason="no C++ compiler: the reference does the work")
@given(pieces=PIECES_OF_BYTES)
@settings(max_examples=100, deadline=None)
def test_native_chances_are_the_references(model: Grams, pieces: list[bytes]) -> None:
    data = b"\n\n\n" + b"".join(pieces)
    assert (model._chances(data) == model._reference(data)).all()


@pytest.mark.skipif(native_grams.library() is None, reason="no C++ compiler: the reference does the work")
def test_weights_that_are_left_out_are_found(model: Grams) -> None:  # the seeded fault
    data = b"\n\n\nabcd zz abcd"
    forgetful = replace(model, tables=tuple(replace(table, slots=table.slots.copy()) for table in model.tables))
    for table in forgetful.tables:
        table.slots["weight"] = 0
    assert (model._chances(data) == model._reference(data)).all()
    assert (model._chances(data) != forgetful._reference(data)).any()


def test_a_models_chances_sum_to_one() -> None:
    """Kneser and Ney's interpolation: whatever came before, something comes next."""
    source = random.Random(1)
    texts = ["".join(source.choices("abcd e\n", k=300)) for _ in range(20)]
    for order in (2, 3, 5):
        model = train_grams(texts, order=order)
        for before in (b"abcd", b"zzzz", b"\n\n\n\n", b"ab e", b"\xff\x00\xc3 "):
            context = before[-(order - 1) :]
            total = sum(np.exp(float(model._chances(context + bytes([byte]))[0])) for byte in range(256))
            assert abs(total - 1) < 1e-5
