"""Which replica a request goes to: as a policy of plain values."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from openbook.serve.routing import BLOCK, Prefixes, marks_of

SYSTEM = "s" * (3 * BLOCK)


def test_marks_go_as_far_as_two_prompts_are_the_same() -> None:
    one, other = marks_of("", [SYSTEM + "a" * BLOCK]), marks_of("", [SYSTEM + "b" * BLOCK])
    assert len(one) == len(other) == 4
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, True, True, False]


def test_tenants_share_no_mark() -> None:
    assert not set(marks_of("ann", [SYSTEM])) & set(marks_of("bob", [SYSTEM]))


def test_a_short_prompt_has_a_mark_of_its_own() -> None:
    assert len(marks_of("", ["hello"])) == 1
    assert marks_of("", [""]) == []


def test_a_conversation_stays_where_it_began() -> None:
    policy, loads = Prefixes(), {"a": 0, "b": 0, "c": 0}
    first = policy.choose(marks_of("", [SYSTEM + "x" * BLOCK]), loads)
    loads[first] += 3  # busier than the others, and still where the prefix is
    for turn in range(5):
        assert policy.choose(marks_of("", [SYSTEM + "x" * BLOCK + "y" * BLOCK * turn]), loads) == first


def test_who_shares_nothing_goes_to_the_least_busy() -> None:
    policy = Prefixes()
    assert policy.choose(marks_of("", ["one" * BLOCK]), {"a": 2, "b": 1}) == "b"
    assert policy.choose(marks_of("", ["two" * BLOCK]), {"a": 2, "b": 3}) == "a"


def test_a_replica_that_is_too_busy_is_passed_over() -> None:
    policy, marks = Prefixes(slack=4), marks_of("", [SYSTEM])
    assert policy.choose(marks, {"a": 0, "b": 1}) == "a"
    assert policy.choose(marks, {"a": 5, "b": 1}) == "a"
    assert policy.choose(marks, {"a": 6, "b": 1}) == "b"
    assert policy.choose(marks, {"a": 0, "b": 0}) == "b"  # which has read it too now, and later


def test_a_replica_that_is_gone_is_nobodys() -> None:
    policy, marks = Prefixes(), marks_of("", [SYSTEM])
    assert policy.choose(marks, {"a": 0, "b": 1}) == "a"
    assert policy.choose(marks, {"b": 1, "c": 2}) == "b"


@given(
    st.lists(st.tuples(st.text(max_size=600), st.dictionaries(st.sampled_from("abc"), st.integers(0, 50), min_size=1)))
)
def test_it_is_bounded_and_never_far_from_the_least_busy(asked: list[tuple[str, dict[str, int]]]) -> None:
    policy = Prefixes(slack=4, most=5)
    for text, loads in asked:
        chosen = policy.choose(marks_of("", [text]), loads)
        assert loads[chosen] <= min(loads.values()) + 4
        assert len(policy._last) <= 5


def test_a_server_imports_no_ray() -> None:
    code = (
        "import sys, openbook.serve.app, openbook.serve.run; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
