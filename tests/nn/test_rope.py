"""Rotary positions: turning keeps lengths, scores depend on distances alone, tables grow without changing."""

from __future__ import annotations

import pytest
import torch

from openbook.nn import spec
from openbook.nn.rope import RotaryTable, frequencies, rotate, sharpen

SCALINGS: list[spec.Scaling | None] = [
    None,
    spec.LinearScaling(factor=4.0),
    spec.DynamicScaling(factor=2.0, original=16),
    spec.YarnScaling(factor=4.0, original=16),
    spec.WavelengthScaling(factor=8.0, original=64),
    spec.NtkScaling(factor=3.0),
    spec.ProportionalScaling(share=0.5, factor=2.0),
]


def turned(rope: spec.Rope, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    cos, sin = RotaryTable(rope).rows(positions, int(positions.max()) + 1, 64, torch.float32)
    return rotate(x, cos, sin)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
@pytest.mark.parametrize("dim", [8, 4, 2])
def test_scores_depend_on_distances_alone(scaling: spec.Scaling | None, dim: int) -> None:
    if isinstance(scaling, spec.DynamicScaling | spec.NtkScaling | spec.ProportionalScaling) and dim == 2:
        pytest.skip("this scaling needs more than two features")
    rope = spec.Rope(dim=dim, theta=1000.0, scaling=scaling)
    q, k = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    scores = [
        (turned(rope, q, torch.tensor([[start + 7]])) * turned(rope, k, torch.tensor([[start]]))).sum(-1)
        for start in (0, 3, 50)
    ]
    assert torch.allclose(scores[0], scores[1], atol=1e-4)
    assert torch.allclose(scores[0], scores[2], atol=1e-4)
    assert not torch.allclose(scores[0], (q * k).sum(-1), atol=1e-2)


def test_lengths_stay_and_features_beyond_are_left_alone() -> None:
    x = torch.randn(2, 5, 3, 10)
    out = turned(spec.Rope(dim=6), x, torch.arange(5).expand(2, 5))
    assert torch.allclose(out.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(out[..., 6:], x[..., 6:])
    assert torch.equal(out[:, 0], x[:, 0])  # position 0 turns nothing
    assert not torch.allclose(out[:, 1:, :, :6], x[:, 1:, :, :6])


def test_a_table_grows_without_changing_what_it_said() -> None:
    table, rope = RotaryTable(spec.Rope(dim=4)), spec.Rope(dim=4)
    few = table.rows(torch.tensor([[3, 200]]), 201, 64, torch.float32)
    many = table.rows(torch.tensor([[3, 200, 5000]]), 5001, 64, torch.float32)
    assert torch.equal(few[0], many[0][:, :2])
    assert torch.equal(few[1], many[1][:, :2])
    assert torch.allclose(many[0][0, 2, 0, :2], (5000 * frequencies(rope, 64)).cos(), atol=1e-5)


def test_dynamic_scaling_follows_the_fixed_length_alone() -> None:
    table = RotaryTable(spec.Rope(dim=8, scaling=spec.DynamicScaling(factor=2.0, original=16)))
    positions = torch.tensor([[9]])
    short = table.rows(positions, 10, 16, torch.float32)
    assert torch.equal(short[0], table.rows(positions, 400, 16, torch.float32)[0])
    longer = table.rows(positions, 400, 64, torch.float32)
    assert not torch.equal(short[0], longer[0])
    assert torch.equal(short[0], table.rows(positions, 10, 16, torch.float32)[0])


def test_longrope_has_two_tables_and_the_fixed_length_chooses() -> None:
    rule = spec.LongRopeScaling(short=(1.0, 1.5), long=(2.0, 6.0), original=16, attention=1.25)
    rope = spec.Rope(dim=4, theta=100.0, scaling=rule)
    plain = frequencies(spec.Rope(dim=4, theta=100.0), 16)
    assert torch.equal(frequencies(rope, 16), plain / torch.tensor([1.0, 1.5]))
    assert torch.equal(frequencies(rope, 17), plain / torch.tensor([2.0, 6.0]))
    table, positions = RotaryTable(rope), torch.tensor([[9]])
    short, long = (table.rows(positions, 400, length, torch.float32) for length in (16, 17))
    assert torch.equal(long[0], table.rows(positions, 400, 90, torch.float32)[0])
    assert not torch.equal(short[0], long[0])
    assert len(table.tables) == 2
    assert torch.allclose(short[0][0, 0, 0, :2], 1.25 * (9 * frequencies(rope, 16)).cos())
    mixed = table.rows(torch.tensor([[9, 9]]), 400, (16, 90), torch.float32)
    assert torch.equal(mixed[0][:, :1], short[0])
    assert torch.equal(mixed[0][:, 1:], long[0])


def test_ntk_divides_the_lowest_frequency_by_its_factor_and_leaves_the_highest() -> None:
    plain = frequencies(spec.Rope(dim=12), 1)
    scaled = frequencies(spec.Rope(dim=12, scaling=spec.NtkScaling(factor=4.0)), 1)
    assert torch.allclose(scaled[-1], plain[-1] / 4)
    assert torch.equal(scaled[0], plain[0])


def test_queries_sharpen_in_steps_that_depend_on_the_position_alone() -> None:
    q, rule = torch.ones(1, 9, 1, 2), spec.Temperature(every=4, scale=0.5, offset=1)
    out = sharpen(q, torch.arange(9).unsqueeze(0), rule)[0, :, 0, 0]
    expected = 1 + 0.5 * torch.log(1 + torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 2, 2]))
    assert torch.allclose(out, expected)
    alone = sharpen(q[:, :1], torch.tensor([[7]]), rule)
    assert torch.equal(alone[0, 0, 0], torch.stack([out[7], out[7]]))


def test_neighbours_turn_as_complex_numbers() -> None:
    """Su et al. 2021, eq. 13: the pair (2i, 2i + 1) is one complex number, turned by position · frequency."""
    rope = spec.Rope(dim=6, theta=100.0, neighbours=True)
    x, positions = torch.randn(2, 5, 3, 8), torch.arange(5).expand(2, 5)
    cos, sin = RotaryTable(rope).rows(positions, 5, 64, torch.float32)
    out = rotate(x, cos, sin, neighbours=True)
    angles = torch.outer(torch.arange(5).float(), frequencies(rope, 64))
    whole = torch.view_as_complex(x[..., :6].unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(whole * torch.polar(torch.ones_like(angles), angles)[None, :, None])
    assert torch.allclose(out[..., :6], expected.flatten(-2), atol=1e-6)
    assert torch.equal(out[..., 6:], x[..., 6:])
    assert not torch.allclose(rotate(x, cos, sin), out, atol=1e-2)  # the seeded fault: halves in place of neighbours
