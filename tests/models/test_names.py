"""Fused layouts: several of our matrices in one that is published, whole or in groups, run both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openbook.models.names import Name, Part, fused, locate, publish

HEADS, KV, SIZE, DIM = 6, 2, 5, 7
OURS = ("q", "k", "v")


def heads(count: int, seed: int) -> Tensor:
    """A matrix [count·SIZE, DIM]."""
    return torch.randn(count * SIZE, DIM, generator=torch.Generator().manual_seed(seed))


# Shares, groups, and the published order, spelled by hand: a list of (ours, head).
LAYOUTS = {
    "one after the other": ((1, 1, 1), 1, HEADS, [(n, h) for n in OURS for h in range(HEADS)]),
    "unequal": ((HEADS, KV, KV), 1, KV, [(n, h) for n in OURS for h in range(HEADS if n == "q" else KV)]),
    "one kv head": ((HEADS, 1, 1), 1, 1, [("q", h) for h in range(HEADS)] + [("k", 0), ("v", 0)]),
    "head by head": ((1, 1, 1), HEADS, HEADS, [(n, h) for h in range(HEADS) for n in OURS]),
    "group by group": (
        (HEADS // KV, 1, 1),
        KV,
        KV,
        [("q", 0), ("q", 1), ("q", 2), ("k", 0), ("v", 0), ("q", 3), ("q", 4), ("q", 5), ("k", 1), ("v", 1)],
    ),
}


@pytest.mark.parametrize("transpose", [False, True], ids=["as it is", "transposed"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_fused_layouts_both_ways(name: str, transpose: bool) -> None:
    shares, groups, kv_heads, order = LAYOUTS[name]
    ours = {"q": heads(HEADS, 0), "k": heads(kv_heads, 1), "v": heads(kv_heads, 2)}
    whole = torch.cat([ours[n].view(-1, SIZE, DIM)[h] for n, h in order])
    bias = torch.cat([ours[n].view(-1, SIZE, DIM)[h, :, 0] for n, h in order])
    theirs = {"qkv.weight": whole.t().contiguous() if transpose else whole, "qkv.bias": bias}
    table = [Name("qkv", own, transpose, Part(k, shares, groups)) for k, own in enumerate(OURS)]
    shapes = {f"{n}.weight": t.shape for n, t in ours.items()} | {f"{n}.bias": t[:, 0].shape for n, t in ours.items()}
    places = locate(table, shapes)
    read = {own: place.read(theirs.__getitem__) for own, place in places.items()}
    for own in OURS:
        assert torch.equal(read[f"{own}.weight"], ours[own])
        assert torch.equal(read[f"{own}.bias"], ours[own][:, 0])
        assert read[f"{own}.weight"].is_contiguous()
    made = publish(places, read)
    assert made.keys() == theirs.keys()
    assert all(torch.equal(made[one](), theirs[one]) for one in theirs)


def test_an_entry_of_equal_parts_is_short_for_shares() -> None:
    assert Name("a", "b", part=(1, 3)).rows == Part(1, (1, 1, 1))
    assert Name("a", "b").rows is None
    assert [entry.rows for entry in fused("qkv", OURS, (4, 1, 1), 2)] == [Part(n, (4, 1, 1), 2) for n in range(3)]


def test_rows_that_are_no_such_groups() -> None:
    with pytest.raises(RuntimeError, match="31 rows are not 2 groups"):
        Part(0, (3, 1, 1), 2).take(torch.zeros(31, 4))


def test_the_order_of_the_groups_shows() -> None:
    """The seeded fault: the same rows read in another grouping are another matrix."""
    whole = heads(3 * HEADS, 4)
    assert not torch.equal(Part(0, (1, 1, 1)).take(whole), Part(0, (1, 1, 1), HEADS).take(whole))
