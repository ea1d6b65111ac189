"""What a step knows: positions, masks and segments, against definitions written as loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openbook.nn.spec import Pattern
from openbook.nn.state import Dense, count_positions, visible

SEGMENTS = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(row=SEGMENTS)
def test_positions_start_again_with_each_segment(row: list[int]) -> None:
    expected, last, position = [], None, 0
    for number in row:
        position = position + 1 if number == last else 0
        expected.append(position)
        last = number
    assert count_positions(torch.tensor([row])).tolist() == [expected]


REACH = st.none() | st.integers(1, 14)


@given(row=SEGMENTS, causal=st.booleans(), window=REACH, chunk=REACH, segmented=st.booleans())
def test_masks_say_who_sees_whom(
    row: list[int], causal: bool, window: int | None, chunk: int | None, segmented: bool
) -> None:
    """Padding sees itself and nothing sees padding; a token sees its own segment and chunk in reach."""
    count = len(row)
    segments = torch.tensor([row]) if segmented else None
    positions = torch.arange(count).unsqueeze(0) if segments is None else count_positions(segments)
    state = Dense(positions, segments, (Pattern(causal=causal, window=window, chunk=chunk),), count)
    places = positions[0].tolist()
    mask = state.masks[0]
    if mask is None:
        assert not segmented
        assert chunk is None or chunk >= count
        mask = torch.ones(count, count, dtype=torch.bool)
        mask = (mask.tril() if causal else mask)[None, None]
    for query in range(count):
        for key in range(count):
            reach = (key <= query or not causal) and (window is None or abs(query - key) < window)
            together = not segmented or (row[query] == row[key] != 0)
            together = together and (chunk is None or places[query] // chunk == places[key] // chunk)
            assert bool(mask[0, 0, query, key]) == ((reach and together) or (segmented and query == key))


def test_visible_between_new_and_kept_tokens() -> None:
    """Queries at places 5 and 6 of a row whose places 0 to 6 are kept."""
    seen = visible(Pattern(window=3), torch.tensor([5, 6]), torch.arange(7))
    assert seen.int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(causal=False)])
def test_what_the_pattern_alone_says_needs_no_mask(pattern: Pattern) -> None:
    assert Dense(torch.zeros(1, 9), None, (pattern,), 9).masks == (None,)
