"""Embeddings, classes and scores: against the reference, and the same in any company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import InputError, Refusal
from openbook.generate.encode import Pooling, by_length, classify, embed, score
from openbook.models.load import load
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from tests.families import DECODERS, ENCODER_DECODERS, ENCODERS, Case, each, tokens
from tests.nn import recurrent

BERT, T5 = ENCODERS[0], ENCODER_DECODERS[0]
LLAMA = next(case for case in DECODERS if case.config == "LlamaConfig")
READERS = [*ENCODERS, *ENCODER_DECODERS, LLAMA]
LENGTHS = (9, 14, 5, 9, 15, 1, 16, 9)
CLOSE = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encode")


def texts(case: Case) -> list[list[int]]:
    return [tokens(case, 1, length, seed=number)[0].tolist() for number, length in enumerate(LENGTHS)]


def hidden(case: Case, text: list[int]) -> torch.Tensor:
    """The reference's last hidden states [T,D] of one text."""
    reference = case.reference()
    base = reference.get_encoder() if case.kind == "encoder-decoder" else reference.base_model
    with torch.no_grad():
        return base(input_ids=torch.tensor([text])).last_hidden_state[0]


POOL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda states: states.mean(0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}


@each(READERS)
@pytest.mark.parametrize("by", POOL)
def test_embeddings_are_the_references(case: Case, by: Any, root: Path) -> None:
    model = load(case.folder(root))
    if by == "cls" and case is LLAMA:
        with pytest.raises(InputError, match="first token of this one sees only itself"):
            embed(model, texts(case), Pooling(by=by))
        return
    plain = torch.stack([POOL[by](hidden(case, text)) for text in texts(case)])
    for pooling in (Pooling(by=by, normalise=False), Pooling(by=by), Pooling(by=by, dimensions=7)):
        wanted = plain[:, : pooling.dimensions]
        wanted = wanted / wanted.norm(dim=1, keepdim=True) if pooling.normalise else wanted
        found = embed(model, texts(case), pooling, budget=40)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@each(READERS)
def test_alone_is_the_same_as_in_any_company(case: Case, root: Path) -> None:
    model, every = load(case.folder(root)), texts(case)
    pooling = Pooling(normalise=False)
    alone = torch.cat([embed(model, [text], pooling) for text in every])
    assert torch.equal(embed(model, every, pooling, exact=True), alone)
    for budget in (1, 33, 10**6):
        together = embed(model, every, pooling, budget=budget)
        assert (together - alone).abs().max() <= CLOSE * max(1.0, float(alone.abs().max()))
    turned = embed(model, every[::-1], pooling).flip(0)
    assert (turned - alone).abs().max() <= CLOSE * max(1.0, float(alone.abs().max()))


def test_the_encoder_has_a_vocabulary_and_a_width_of_its_own() -> None:
    """Those of the decoder say nothing about what is read."""
    value = recurrent.PAIRS["luong-concat"]
    narrow = replace(value.stack.blocks[0].branches[0].layer, hidden=9)
    block = spec.Block(branches=(spec.Branch(layer=narrow, place="plain"),))
    value = replace(value, embed=spec.Embed(vocab=11, dim=10), stack=replace(value.stack, dim=10, blocks=(block,)))
    model = recurrent.random(value)
    texts = [[recurrent.VOCAB - 1, 3, 5], [40, 50]]
    found = embed(model, texts, Pooling(normalise=False))
    with torch.no_grad():
        wanted = torch.stack([model.encode(torch.tensor([text]))[0].mean(0) for text in texts])
    assert found.shape == (2, recurrent.DIM)
    assert (found - wanted).abs().max() <= 1e-5
    assert embed(model, texts, Pooling(dimensions=17)).shape == (2, 17)  # more than the decoder has
    with pytest.raises(InputError, match=f"0 to {recurrent.VOCAB - 1}"):
        embed(model, [[recurrent.VOCAB]])


def test_passes_hold_alike_lengths_within_the_budget() -> None:
    lengths = [3, 100, 97, 3, 50, 101, 8, 9]
    passes = by_length(lengths, 250)
    assert sorted(place for part in passes for place in part) == list(range(8))
    assert [5, 1] in passes
    for part in passes:
        longest = lengths[part[0]]
        assert longest * len(part) <= 250 or len(part) == 1
        assert all((longest - lengths[place]) * 8 <= lengths[place] for place in part)
    assert all(len(part) == 1 for part in by_length(lengths, exact=True))
    assert max(len(part) for part in by_length([5] * 9, rows=4)) == 4


def judge(root: Path, architecture: str, labels: int) -> tuple[Any, LanguageModel]:
    import transformers

    torch.manual_seed(4)
    base = BERT if architecture.startswith("Bert") else LLAMA
    values = {**base.values, "pad_token_id": 0} if base is LLAMA else base.values
    config = getattr(transformers, base.config)(**values, num_labels=labels)
    config._attn_implementation = "eager"
    reference = getattr(transformers, architecture)(config).float().eval()
    folder = root / f"{architecture}{labels}"
    reference.save_pretrained(folder)
    return reference, load(folder)


@pytest.mark.parametrize(
    "architecture", ["BertForSequenceClassification", "BertForTokenClassification", "LlamaForSequenceClassification"]
)
def test_classes_are_the_references(architecture: str, root: Path) -> None:
    reference, model = judge(root, architecture, 3)
    case = BERT if architecture.startswith("Bert") else LLAMA
    found = classify(model, texts(case), budget=64)
    for text, logits in zip(texts(case), found, strict=True):
        with torch.no_grad():
            wanted = reference(input_ids=torch.tensor([text])).logits[0]
        assert logits.shape == wanted.shape
        assert (logits - wanted).abs().max() <= 1e-5


def test_scores_of_pairs(root: Path) -> None:
    reference, model = judge(root, "BertForSequenceClassification", 1)
    pairs = texts(BERT)
    types = [[0] * (len(text) // 2) + [1] * (len(text) - len(text) // 2) for text in pairs]
    found, chances = score(model, pairs, types=types), score(model, pairs, types=types, sigmoid=True)
    for text, kind, value, chance in zip(pairs, types, found, chances, strict=True):
        with torch.no_grad():
            wanted = reference(input_ids=torch.tensor([text]), token_type_ids=torch.tensor([kind])).logits[0, 0]
        assert value == pytest.approx(float(wanted), abs=1e-5)
        assert chance == pytest.approx(float(wanted.sigmoid()), abs=1e-5)
    assert found != pytest.approx(score(model, pairs), abs=1e-5)  # types count


def test_what_cannot_be_read_is_said(root: Path) -> None:
    bert, t5 = load(BERT.folder(root)), load(T5.folder(root))
    limit = bert.spec.context
    assert limit is not None
    with pytest.raises(InputError, match=f"Text 1 has {limit + 2} tokens .* {limit}: shorten it by 2"):
        embed(bert, [[5], [5] * (limit + 2)])
    for call, message in (
        (lambda: embed(bert, [[]]), "Text 0 is empty"),
        (lambda: embed(bert, [[10**6]]), "text 0 holds 1000000"),
        (lambda: embed(bert, [[5]], Pooling(dimensions=10**4)), "`dimensions` must be at most"),
        (lambda: embed(bert, [[5]], types=[[0, 1]]), "1 ids and 2 `types`"),
        (lambda: embed(bert, [[5]], types=[[9]]), "`types` of text 0 holds 9"),
        (lambda: embed(bert, [[5]], types=[]), "1 texts and 0 rows"),
        (lambda: embed(t5, [[5]], types=[[0]]), "no segment types"),
        (lambda: embed(bert, [[5]], budget=0), "`budget`"),
        (lambda: Pooling(by="median"), "`by` must be"),  # type: ignore[arg-type]
        (lambda: Pooling(dimensions=0), "`dimensions` must be"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(Refusal, match="no class head"):
        classify(bert, [[5]])
    _, model = judge(root, "BertForSequenceClassification", 3)
    with pytest.raises(Refusal, match="one label"):
        score(model, [[5]])
    with pytest.raises(InputError, match="no class head 'x'"):
        classify(model, [[5]], head="x")
    assert embed(bert, []).shape == (0, bert.spec.stack.dim)
    assert classify(model, []) == []


def test_the_test_of_company_sees_padding_that_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(rows: Any, device: torch.device) -> tuple[torch.Tensor, None]:
        width = max(len(row) for row in rows)
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device), None

    monkeypatch.setattr("openbook.generate.encode.padded", careless)
    with pytest.raises(AssertionError):
        test_alone_is_the_same_as_in_any_company(BERT, root)
