"""Stop strings: the same text however the bytes are cut, and nothing of a stop ever shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openbook.generate.stops import Watch

BYTES = st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"aab", b"\xff", b""]), max_size=12)
STOPS = st.lists(st.sampled_from([b"ab", b"aab", b"b", b"aba", b"baab", b"\xffa", b"aaaa"]), min_size=1, max_size=3)


def run(pieces: list[bytes], stops: list[bytes]) -> tuple[bytes, Watch, int]:
    watch, shown, fed = Watch(stops), b"", 0
    for piece in pieces:
        shown += watch.feed(piece)
        fed += len(piece)
        if watch.found is not None:
            return shown, watch, fed
    return shown + watch.finish(), watch, fed


@given(BYTES, STOPS)
def test_any_cut_gives_the_text_of_single_bytes(pieces: list[bytes], stops: list[bytes]) -> None:
    whole = b"".join(pieces)
    shown, watch, fed = run(pieces, stops)
    singly, single, _ = run([bytes([b]) for b in whole], stops)
    assert (shown, watch.found) == (singly, single.found)
    assert shown == whole[: fed - watch.excess]
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if ends:  # by definition: the text before the stop that ends first, the longest of those
        found = max((s for s in stops if s in whole and whole.find(s) + len(s) == min(ends)), key=len)
        assert (watch.found, shown) == (found, whole[: min(ends) - len(found)])
    else:
        assert (watch.found, shown, watch.excess) == (None, whole, 0)


@given(BYTES, STOPS)
def test_nothing_shown_is_taken_back(pieces: list[bytes], stops: list[bytes]) -> None:
    watch, shown = Watch(stops), b""
    for piece in pieces:
        shown += watch.feed(piece)
        assert not any(stop in shown for stop in stops)
        if watch.found is not None:
            return


def test_a_stop_that_passes_is_not_found_later() -> None:
    watch = Watch([b"ab", b"abxx"])
    assert watch.feed(b"ab", stopping=False) == b""  # it may still become the longer one
    assert watch.feed(b"c") == b"abc"
    assert watch.found is None
    assert Watch(()).feed(b"anything") == b"anything"
