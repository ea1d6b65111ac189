"""Pairs of recurrent networks through the project's own loop: teacher forcing, scheduled sampling, greedy and beams."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from openbook.data.batch import Batch
from openbook.errors import ConfigError, DataError
from openbook.generate.engine import Engine
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from openbook.models.make import make
from openbook.nn.model import LanguageModel
from openbook.nn.serving import serve_form
from openbook.train import sampled
from openbook.train.loop import fit
from openbook.train.objectives import BothWays, Language, Objective
from openbook.train.optim import Optimisation, Optimizer
from openbook.train.run import Plan, Run
from openbook.train.sampled import Scheduled, ScheduledRows, Teacher
from openbook.train.schedules import Schedule
from openbook.train.step import Rows
from tests.laws.test_training_invariance import close, gradient
from tests.nn.recurrent import VOCAB, bilm, random
from tests.train.reversal import BEGIN, END, LENGTH, Reversal, right, small
from tests.train.tiny import Text

ROWS = 32


def trained(look: str, rows: Rows, objective: Objective, steps: int) -> LanguageModel:
    model = make(small(look), 1)
    run = Run(
        model=model,
        objective=objective,
        rows=rows,
        optimizer=Optimizer(model, Optimisation(lr=0.006, weight_decay=0.0)),
        schedule=Schedule(shape="cosine", warmup=20),
        plan=Plan(steps=steps, rows=((0, ROWS),)),
    )
    fit(run)
    return model.eval()


TEACHER = Teacher(k=60.0)  # half of the words are true at step 250
WAYS: dict[str, Callable[[], LanguageModel]] = {
    "bahdanau": lambda: trained("before", Reversal(), Language(), 300),
    "luong": lambda: trained("fed", Reversal(), Language(), 350),
    "scheduled": lambda: trained("before", ScheduledRows(Reversal(), TEACHER, seed=0, step=ROWS), Scheduled(), 300),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_strings_are_written_backwards(way: str) -> None:
    """Exact match on strings nobody trained on; the engine says what the loop says."""
    model = WAYS[way]()
    greedy = right(model, 100)
    assert greedy > 0.95
    assert right(model, 100, beams=4) >= greedy
    sources = [Reversal(seed=5).source(number) for number in range(4)]
    engine = Engine(serve_form(model, "fp32"), Settings(memory=4 << 20), start=(BEGIN,), eos=(END,))
    said = engine.generate(sources, Sampling(max_tokens=LENGTH + 2, temperature=0.0))
    assert [list(one.ids)[:LENGTH] for one in said] == [one[::-1] for one in sources]


# ------------------------------------------------------------------------------------------------ scheduled sampling


def test_the_teachers_chance_falls() -> None:
    """Bengio et al. 2015 §2.4."""
    for teacher in (Teacher(shape="linear", k=50.0), Teacher(shape="exponential", k=0.95), Teacher(k=8.0)):
        chances = [teacher.chance(step) for step in (0, 10, 20, 40, 1000)]
        assert chances == sorted(chances, reverse=True)
        assert chances[0] > 0.85
        assert chances[-1] < 1e-6
    assert Teacher(k=8.0).chance(24) == 8 / (8 + math.exp(3))
    assert Teacher(shape="exponential", k=0.5).chance(3) == 0.125
    assert Teacher(shape="linear", k=10.0, least=0.25).chance(9) == 0.25


@pytest.mark.parametrize(
    "wrong", [("exponential", 1.5), ("exponential", 0.0), ("inverse-sigmoid", 0.5), ("linear", 0.0)]
)
def test_a_teacher_that_never_lets_go_is_an_error(wrong: tuple[str, float]) -> None:
    with pytest.raises(ConfigError, match="`k`"):
        Teacher(shape=wrong[0], k=wrong[1])  # type: ignore[arg-type]


def own_rows(teacher: Teacher | None = None, ragged: bool = True) -> ScheduledRows:
    return ScheduledRows(Reversal(ragged=ragged), teacher or Teacher(shape="exponential", k=0.5), seed=3, step=2)


def model_of(look: str = "fed") -> LanguageModel:
    return random(small(look, 12), seed=2, spread=0.6).train()


def test_words_are_drawn_from_what_the_model_says() -> None:
    """Of the first word, over many rows alike: as often as the model says; and only where the batch asks for it."""
    model, count = model_of(), 3000
    one = Reversal().batch(0, 1)
    assert one.source is not None
    draw = torch.rand(count, LENGTH + 1, generator=torch.Generator().manual_seed(0))
    own = torch.zeros(count, LENGTH + 1, dtype=torch.bool)
    own[:, 1] = True
    batch = Batch(
        ids=one.ids.expand(count, -1), source=one.source.expand(count, -1), targets={"own": own, "draw": draw}
    )
    ids = sampled.written(model, batch)
    assert torch.equal(ids[:, 2:], batch.ids[:, 2:])
    said = model.eval()(one.ids[:, :1], source=one.source)[0, 0].softmax(-1).detach()
    seen = torch.bincount(ids[:, 1], minlength=len(said)) / count
    assert (seen - said).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_word_depends_on_the_words_before_it() -> None:
    """A later draw reads what was drawn before, not the true text."""
    model = model_of()
    batch = own_rows(Teacher(shape="linear", k=1e-9)).batch(4, 6)
    ids = sampled.written(model, batch)
    assert batch.segments is not None
    real = batch.segments != 0
    assert torch.equal(ids[:, 0], batch.ids[:, 0])
    assert (ids[real] != batch.ids[real]).float().mean() > 0.5
    assert torch.equal(ids[~real], batch.ids[~real])
    model.eval()
    logits = model(ids, segments=batch.segments, source=batch.source, source_segments=batch.source_segments)
    sums = logits.detach().softmax(-1).cumsum(-1)
    again = torch.searchsorted(sums[:, :-1].contiguous(), batch.targets["draw"][:, 1:, None].contiguous()).squeeze(-1)
    assert torch.equal(again[real[:, 1:]], ids[:, 1:][real[:, 1:]])


@pytest.mark.parametrize("size", [1, 2])
def test_scheduled_rows_do_not_depend_on_the_split(size: int) -> None:
    """Law 5."""
    model, rows = model_of(), own_rows()
    whole = [rows.batch(0, 8)]
    assert 4 < int(whole[0].targets["own"].sum()) < 8 * LENGTH
    parts = [rows.batch(start, size) for start in range(0, 8, size)]
    assert close(gradient(model, Scheduled(), whole), gradient(model, Scheduled(), parts))
    assert not close(gradient(model, Scheduled(), whole), gradient(model, Language(), whole))


def test_a_draw_by_the_rows_place_breaks_the_law() -> None:
    """Seeded fault: chance that knows the batch, not the row."""
    model, rows = model_of(), own_rows()
    whole = [rows.batch(0, 8)]
    ones = [rows.batch(row, 1) for row in range(8)]
    for one in ones:
        one.targets["draw"][:] = ones[0].targets["draw"]  # type: ignore[index]
    assert not close(gradient(model, Scheduled(), whole), gradient(model, Scheduled(), ones))


def test_texts_packed_into_a_row_are_refused() -> None:
    batch = own_rows(Teacher(shape="linear", k=1e-9)).batch(4, 2)
    assert batch.segments is not None
    with pytest.raises(DataError, match="packed"):
        sampled.written(model_of(), replace(batch, segments=batch.segments * 2))


# ------------------------------------------------------------------------------------------------ both ways


def test_both_ways_are_two_language_models() -> None:
    model = random(bilm(), seed=1)
    batch = Text().batch(0, 4)
    assert int(batch.ids.max()) < VOCAB
    terms = BothWays()(model, batch)
    logits = model(batch.ids, segments=batch.segments).log_softmax(-1)
    assert batch.segments is not None
    for way, (name, step) in enumerate((("ahead", 1), ("back", -1))):
        real = batch.segments != 0
        total, count = torch.zeros(()), 0
        for row in range(len(batch.ids)):
            for place in range(int(real[row].sum())):
                wanted = batch.targets["language"][row, place] if step == 1 else batch.ids[row, place - 1]
                if (step == 1 and wanted >= 0) or (step == -1 and place > 0):
                    total, count = total - logits[row, place, way, wanted], count + 1
        torch.testing.assert_close(terms[name].total, total)
        assert BothWays().counts(batch)[name] == count


def test_both_ways_do_not_depend_on_the_split() -> None:
    model = random(bilm(), seed=1)
    parts = [Text().batch(row, 1) for row in range(8)]
    assert close(gradient(model, BothWays(), [Text().batch(0, 8)]), gradient(model, BothWays(), parts))  # type: ignore[arg-type]


def test_an_objective_for_another_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="BothWays"):
        Language()(random(bilm()), Text().batch(0, 2))
    with pytest.raises(ConfigError, match="directions=2"):
        BothWays()(random(small("fed", 12)), Reversal().batch(0, 2))
