"""Fill-in and iterative mask prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openbook.errors import InputError, Refusal
from openbook.generate.masked import fill, remaining, unmask
from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, ENCODER_DECODERS, ENCODERS, tokens

CASE = ENCODERS[0]
MASK = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(CASE.folder(tmp_path_factory.mktemp("masked")))


def texts() -> list[list[int]]:
    rows = [tokens(CASE, 1, length, seed=length)[0].tolist() for length in (9, 14, 5)]
    rows[0][3] = rows[1][0] = rows[1][7] = rows[1][13] = rows[2][4] = MASK
    return rows


def reference(text: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return CASE.reference()(input_ids=torch.tensor([text])).logits[0]


def test_fill_is_their_best_ids(model: LanguageModel) -> None:
    for text, blanks in zip(texts(), fill(model, texts(), MASK, top=4), strict=True):
        assert [blank.place for blank in blanks] == [place for place, i in enumerate(text) if i == MASK]
        for blank in blanks:
            best = reference(text)[blank.place].softmax(-1).topk(4)
            assert [i for i, _ in blank.top] == best.indices.tolist()
            assert [p for _, p in blank.top] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_fill_leaves_out_banned_ids(model: LanguageModel) -> None:
    plain = fill(model, texts()[:1], MASK, top=3)[0][0].top
    other = fill(model, texts()[:1], MASK, top=2, banned=[plain[0][0]])[0][0].top
    assert [i for i, _ in other] == [i for i, _ in plain[1:]]


def by_hand(text: list[int], steps: int, schedule: str) -> list[int]:
    """Mask prediction on the reference model, as the papers say it."""
    text, total = list(text), text.count(MASK)
    for step in range(1, steps + 1):
        places = [place for place, i in enumerate(text) if i == MASK]
        if not places:
            break
        logits = reference(text)
        logits[:, MASK] = -torch.inf
        sure, ids = logits.log_softmax(-1).max(-1)
        left = remaining(total, step, steps, schedule)
        for place in sorted(places, key=lambda p: -float(sure[p]))[: len(places) - min(left, len(places) - 1)]:
            text[place] = int(ids[place])
    return text


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30])
def test_unmask_by_hand(model: LanguageModel, steps: int, schedule: str) -> None:
    rows = [*texts(), [MASK] * 12, [5, *[MASK] * 7, 6]]
    got = unmask(model, rows, MASK, steps=steps, schedule=schedule)
    assert got == [by_hand(row, steps, schedule) for row in rows]
    assert all(MASK not in row for row in got)
    assert rows[3] == [MASK] * 12  # the input is left alone


def test_draws_belong_to_the_text_and_its_seed(model: LanguageModel) -> None:
    rows = [*texts(), [MASK] * 10]
    settings = {"steps": 4, "temperature": 1.5, "banned": [0, 1]}
    together = unmask(model, rows, MASK, seed=3, **settings)
    assert together == [unmask(model, [row], MASK, seed=3, **settings)[0] for row in rows]
    assert together == unmask(model, rows, MASK, seed=3, batch=2, **settings)
    assert together != unmask(model, rows, MASK, seed=4, **settings)
    assert unmask(model, rows, MASK, **settings) != unmask(model, rows, MASK, **settings)
    assert not {0, 1, MASK} & set(together[3])


def test_schedules_end_at_nothing_and_always_fill_one() -> None:
    for schedule in ("cosine", "linear"):
        for masks in (1, 2, 5, 100):
            for steps in (1, 3, 10, 250):
                left = [masks, *(remaining(masks, step, steps, schedule) for step in range(1, steps + 1))]
                assert left == sorted(left, reverse=True)
                assert left[1] < masks
                assert left[-1] == 0
    assert [remaining(8, t, 4, "linear") for t in range(1, 5)] == [6, 4, 2, 0]


def test_bad_input_is_said(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Text 1 has no mask \(id 2\)"):
        fill(model, [[MASK], [5, 6]], MASK)
    with pytest.raises(InputError, match="Text 0 has 41 tokens and the context of this model holds 40: shorten"):
        unmask(model, [[MASK] * 41], MASK)
    for call in (
        lambda: fill(model, texts(), MASK, top=0),
        lambda: fill(model, texts(), MASK, top=102),
        lambda: fill(model, [[MASK, 101]], MASK),
        lambda: unmask(model, texts(), MASK, steps=0),
        lambda: unmask(model, texts(), MASK, temperature=-1.0),
        lambda: unmask(model, texts(), MASK, schedule="square"),
        lambda: unmask(model, texts(), MASK, banned=[-1]),
        lambda: unmask(model, texts(), MASK, batch=0),
        lambda: fill(model, texts(), 500),
    ):
        with pytest.raises(InputError):
            call()
    for case in (DECODERS[0], ENCODER_DECODERS[0]):
        with pytest.raises(Refusal, match="left to right"):
            fill(load(case.folder(tmp_path)), [[MASK]], MASK)
    assert fill(model, [], MASK) == []
    assert unmask(model, [], MASK) == []
