"""Changing the rows of a model: what is kept speaks as before, what is new is a mean, other tools load the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from openbook.errors import InputError
from openbook.models.load import load, save
from openbook.models.make import fuse
from openbook.models.vocabulary import with_vocabulary
from openbook.nn.model import LanguageModel
from tests.families import core, encoders, pairs
from tests.families.case import Case

QUICK = ("llama", "gpt2", "t5", "albert")
NAMES = (*QUICK, "llama-tied-mha", "bert", "electra", "electra-wide", "roberta-padding", "bart", "marian")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
CASES = {case.name: case for case in (*core.CASES, *encoders.CASES, *pairs.CASES) if case.name in NAMES}


def loaded(case: Case, root: Path) -> LanguageModel:
    return load(case.folder(root))


def logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids) if model.spec.source is None else model(ids, source=ids)


def theirs(case: Case, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    model = getattr(transformers, case.architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        given = {"decoder_input_ids": ids} if case.kind == "encoder-decoder" else {}
        return model(input_ids=ids, **given).logits


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    bound = 1e-5 * max(1.0, float(reference.abs().max()))
    assert float((ours - reference).abs().max()) <= bound


def trimmed_rows(vocab: int) -> list[tuple[int, ...]]:
    """The first few rows, which special ids point at, then every third."""
    return [(number,) for number in range(vocab) if number < 8 or number % 3 == 0]


@EACH
def test_kept_ids_have_the_logits_they_had(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = loaded(case, tmp_path)
    vocab = model.spec.embed.vocab
    rows = trimmed_rows(vocab)
    ids = {old: new for new, (old,) in enumerate(rows)}
    made = with_vocabulary(model, rows, known=vocab, ids=ids)
    new = torch.randint(4, len(rows), (2, 9), generator=torch.Generator().manual_seed(1))
    old = torch.tensor([row[0] for row in rows])
    before, after = logits(model, old[new]), logits(made, new)
    close(after, before[..., old])
    save(made, tmp_path / "made")
    close(logits(load(tmp_path / "made"), new), after)
    close(after, theirs(case, tmp_path / "made", new))


def test_a_row_in_the_wrong_place_is_found(tmp_path: Path) -> None:
    model = loaded(CASES["gpt2"], tmp_path)
    rows = trimmed_rows(model.spec.embed.vocab)
    made = with_vocabulary(model, [*rows[:9], rows[10], rows[9], *rows[11:]], known=model.spec.embed.vocab)
    new = torch.tensor([[4, 9, 10, 5]])
    old = torch.tensor([row[0] for row in rows])
    with pytest.raises(AssertionError):
        close(logits(made, new), logits(model, old[new])[..., old])


@EACH
def test_new_rows_are_means(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = loaded(case, tmp_path)
    vocab = model.spec.embed.vocab
    known = vocab - 3  # the last rows are padding
    rows: list[Sequence[int]] = [*((number,) for number in range(known)), (5, 6, 9), ()]
    made = with_vocabulary(model, rows, known=known, multiple=8)
    assert made.spec.embed.vocab % 8 == 0
    for parameter in ("embed.tokens.weight", "heads.language.weight", "heads.language.bias"):
        table, own = dict(made.named_parameters()).get(parameter), dict(model.named_parameters()).get(parameter)
        if table is not None and own is not None:
            torch.testing.assert_close(table[:known], own[:known], rtol=0, atol=0)
            torch.testing.assert_close(table[known], own[[5, 6, 9]].mean(0))
            torch.testing.assert_close(table[known + 1], own[:known].mean(0))
            assert not table[known + 2 :].any()
    ids = torch.tensor([[4, 5, known, known + 1, 7]])
    save(made, tmp_path / "made")
    close(logits(made, ids), theirs(case, tmp_path / "made", ids))


def test_the_old_model_is_as_it_was(tmp_path: Path) -> None:
    model = loaded(CASES["llama"], tmp_path)
    ids = torch.tensor([[4, 5, 6]])
    before = logits(model, ids)
    made = with_vocabulary(model, [(4,), (5,), (6,), (4, 5)], known=model.spec.embed.vocab)
    with torch.no_grad():
        made.embed.tokens.weight.zero_()
    assert torch.equal(logits(model, ids), before)
    assert made.spec.embed.vocab == 4


def test_rows_of_another_model(tmp_path: Path) -> None:
    body, giver = loaded(CASES["llama"], tmp_path), loaded(CASES["llama-tied-mha"], tmp_path)
    made = with_vocabulary(body, [(7,), (8, 9)], known=giver.spec.embed.vocab, donor=giver)
    table = giver.embed.tokens.weight
    for parameter in ("embed.tokens.weight", "heads.language.weight"):  # the giver's head is its embedding
        torch.testing.assert_close(made.get_parameter(parameter)[0], table[7])
        torch.testing.assert_close(made.get_parameter(parameter)[1], table[[8, 9]].mean(0))
    with pytest.raises(InputError, match="same width"):
        with_vocabulary(loaded(CASES["albert"], tmp_path), [(1,)], known=5, donor=giver)


def test_special_ids_of_the_configuration_follow(tmp_path: Path) -> None:
    model = loaded(CASES["t5"], tmp_path)
    model.config |= {"pad_token_id": 4, "eos_token_id": [5, 6], "bos_token_id": 9}
    made = with_vocabulary(model, [(6,), (4,), (0,), (1,)], known=20, ids={6: 0, 4: 1, 0: 2, 1: 3})
    assert (made.config["pad_token_id"], made.config["eos_token_id"]) == (1, [0])
    assert "bos_token_id" not in made.config


@pytest.mark.parametrize(
    ("rows", "known", "says"),
    [
        ([(99999,)], 20, "from 0 to 19"),
        ([(-1,)], 20, "from 0 to 19"),
        ([], 20, "from 0 to 19"),
        ([(1,)], 99999, "do not belong together"),
    ],
)
def test_refusals(rows: list[tuple[int, ...]], known: int, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        with_vocabulary(loaded(CASES["llama"], tmp_path), rows, known=known)


def test_a_rewritten_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="as it was loaded"):
        with_vocabulary(fuse(loaded(CASES["llama"], tmp_path)), [(1,)], known=20)
