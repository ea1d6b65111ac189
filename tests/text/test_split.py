"""The table of characters against the library that it speaks for, and patterns that are left to that library."""

from __future__ import annotations

import numpy as np
import pytest

from openbook.text import characters
from openbook.text.pattern import Unsupported
from openbook.text.split import compile_pattern, compile_steps
from tests.text.probe_characters import EVERY, members, probe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["category", "space", "Han", "numeric"])
def test_the_table_is_what_the_library_says(name: str) -> None:
    assert np.array_equal(probe(name), characters.values(name))


def test_letters_in_any_case_are_those_of_the_library() -> None:
    """What `(?i:…)` makes of each letter of ASCII."""
    for letter in "adklmrstvxyz":
        program = compile_pattern(f"(?i:{letter})")
        mask = program.masks[program.pages].reshape(-1) & np.uint64(1)
        assert np.array_equal(mask == 1, members(f"(?i:{letter})", EVERY[:0x2200])), letter


@pytest.mark.parametrize(
    "pattern",
    [
        r"a*", r"(a|b)+", r"a|", r"(?<=a)b", r"(?<!a)b", r"(?>a)", r"(?=ab)c", r"a+?", r"a{2}{3}", r"a{1,3}+",
        r"\bword", r"\w+", r"^a",
        r"[[:alpha:]]", r"\p{Greek}", r"(?i:é)", r"(?i:ss)", r"(?i:[^a])", r"[]a]", r"[a", r"(a",
        r"a)", r"a{,0}", r"\p{L", r"\X", r"",
        "(" * 5000 + "a" + ")" * 5000, "|".join(chr(0x100 + n) for n in range(60)),
        r"[z-a]", r"a{3,2}", r"\xff", r"(?m)a", "\\",
    ],
)  # fmt: skip
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(Unsupported):
        compile_pattern(pattern)


def test_other_steps_are_refused() -> None:
    level = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    for step in (
        None,
        {"type": "Whitespace"},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        {"type": "Sequence", "pretokenizers": [level, {"type": "Digits", "individual_digits": True}]},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, level],
        },
    ):
        with pytest.raises(Unsupported):
            compile_steps(step)
