"""Speculation on real (tiny) models: the output of plain generation, and what a draft model needs from its owner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.generate.loop import generate_ids
from openbook.generate.sampler import Row
from openbook.generate.sampling import Sampling
from openbook.generate.speculate import Case as Speculated
from openbook.generate.speculate import DraftModel, Proposal, verify
from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, Case, tokens
from tests.generate.copying import Copying

CASES = [next(c for c in DECODERS if c.config == name) for name in ("LlamaConfig", "GPT2Config", "MambaConfig")]
ROOM = 30
SAMPLINGS = [
    Sampling(temperature=0.0, max_tokens=ROOM),
    Sampling(temperature=0.7, top_k=20, seed=3, max_tokens=ROOM),
    Sampling(temperature=0.0, repetition_penalty=1.2, max_tokens=ROOM),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speculate")


def rows_of(case: Case) -> list[Row]:
    prompt = tokens(case, 1, 6, seed=1)[0].tolist()
    return [Row(sampling, [*prompt, *prompt, *prompt[:2]]) for sampling in SAMPLINGS]


def read(model: LanguageModel, row: Row, drafts: Sequence[int]) -> Tensor:
    """Logits [k+1,V] after the row and after each draft."""
    with torch.inference_mode():
        ids = torch.tensor([[*row.prompt, *row.output, *drafts]])
        return model(ids)[0, -len(drafts) - 1 :]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_copying_writes_what_plain_generation_writes(case: Case, root: Path) -> None:
    model = load(case.folder(root))
    rows = rows_of(case)
    plain = generate_ids(model, [row.prompt for row in rows], [row.sampling for row in rows], cached=False)
    helpers = [Copying(row, cost=0.01) for row in rows]
    while live := [helper for helper in helpers if len(helper.row.output) < ROOM]:
        proposals = [helper.propose(ROOM - len(helper.row.output)) for helper in live]
        logits = [read(model, h.row, p.drafts) for h, p in zip(live, proposals, strict=True)]
        cases = [Speculated(h.row, p) for h, p in zip(live, proposals, strict=True)]
        for helper, proposal, verdict in zip(live, proposals, verify(cases, torch.cat(logits)), strict=True):
            helper.note(proposal, verdict)
    assert [row.output for row in rows] == [result.ids for result in plain]
    assert sum(helper.tally.proposed for helper in helpers) > 0


@pytest.mark.parametrize("coupled", [False, True])
def test_a_model_that_drafts_for_itself_is_always_right(coupled: bool, root: Path) -> None:
    model = load(CASES[0].folder(root))
    rows = rows_of(CASES[0])

    def follow(places: Sequence[int], drafted: Sequence[Sequence[int]]) -> Tensor:
        return torch.cat([read(model, rows[i], drafts)[-1:] for i, drafts in zip(places, drafted, strict=True)])

    proposals: list[Proposal] = DraftModel(follow, coupled=coupled).propose(rows[:2], [4, 3])
    logits = torch.cat([read(model, row, p.drafts) for row, p in zip(rows, proposals, strict=False)])
    verdicts = verify([Speculated(row, p) for row, p in zip(rows, proposals, strict=False)], logits)
    assert [verdict.accepted for verdict in verdicts] == [4, 3]
    assert [len(verdict.tokens) for verdict in verdicts] == [5, 4]
