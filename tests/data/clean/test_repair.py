"""What repair does to a text, beside what ftfy does (tests/laws/test_cleaning.py)."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from openbook.data.clean.repair import Repair
from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import MissingExtra

REPAIR = Repair()


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("cafÃ© â€œyesâ€\x9d", "café “yes”"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("a\0b\x07c\x7fd\x1b[31mred\x1b[0m", "abcdred"),
        ("soft\xadhy\u200bphen\ufeff", "softhyphen"),
        ("fish &amp; chips", "fish & chips"),
        ("<p>fish &amp; chips", "<p>fish &amp; chips"),
        ("ﬁne", "fine"),
        ("e\u0301", "é"),
        ("a&#13;b", "a\nb"),
        ("x" + "\u0301" * 100, "x" + "\u0301" * 30),
    ],
)
def test_faults_are_mended(broken: str, sound: str) -> None:
    assert REPAIR.repair(broken) == sound


@pytest.mark.parametrize(
    "sound",
    [
        "“He said—well, ‘no’…” 20°, £5, naïve œuvre",
        "می‌خواهم",  # a joiner that shapes letters
        "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "，全角逗号。ｱ",
        "Привет Ελλάδα שלום",
        "AT&T; R&D",
        "tab\tand\nlines\n",
    ],
)
def test_sound_text_stays(sound: str) -> None:
    assert REPAIR.repair(sound) == unicodedata.normalize("NFC", sound) == sound
    document = Document(sound, Path("a"), 1, 1)
    assert REPAIR(document) is document


def test_what_is_empty_afterwards_goes() -> None:
    assert REPAIR(Document("\0\ufeff\u200b", Path("a"), 1, 1)) == Removed("nothing is left after repair")


def test_ascii_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbook.data.clean import repair

    def missing() -> None:
        raise MissingExtra("ftfy", "data", "Repairing wrongly decoded text")

    monkeypatch.setattr(repair, "_ftfy", missing)
    repair._hazards.cache_clear()
    assert REPAIR.repair("plain\r\ntext") == "plain\ntext"
    with pytest.raises(MissingExtra, match=r"openbook\[data\]"):
        REPAIR.repair("cafÃ©")
