"""DeBERTa and Longformer in all their published forms: every head, old and new spellings, heads of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import ConfigError
from openbook.models.cost import inventory, parameters
from openbook.models.load import load, save
from openbook.models.registry import read
from openbook.nn import spec
from tests.families.local import DEBERTA, LONGFORMER
from tests.models.published_local import COUNTS

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Deberta": ("DebertaConfig", DEBERTA),
    "DebertaV2": ("DebertaV2Config", {**DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}),
    "Longformer": ("LongformerConfig", LONGFORMER),
}
HEADS = [
    ("Deberta", "ForSequenceClassification"),
    ("DebertaV2", "ForSequenceClassification"),
    ("Longformer", "Model"),
    ("Longformer", "ForSequenceClassification"),
    ("Longformer", "ForQuestionAnswering"),
]


def close(ours: Tensor, theirs: Tensor) -> bool:
    """The bound of law 1."""
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())))


def made(family: str, architecture: str, **more: Any) -> Any:
    """A reference with random weights, none at its default."""
    import transformers

    name, values = FAMILIES[family]
    torch.manual_seed(7)
    config = getattr(transformers, name)(**{**values, "hidden_dropout_prob": 0.13, **more})
    model = getattr(transformers, f"{family}{architecture}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def question(rows: int = 2) -> Tensor:
    """Rows with three separators, as the reference wants them for questions."""
    ids = torch.randint(3, 100, (rows, 15))
    for row in range(rows):
        ids[row, [4 + row, 5 + row, 14]] = 2
    return ids


@torch.no_grad()
@pytest.mark.parametrize(("family", "architecture"), HEADS)
def test_heads_with_rules_of_their_own(family: str, architecture: str, tmp_path: Path) -> None:
    """Dropout and activation of the pooler's own; what is marked where the caller marks nothing."""
    count = 2 if architecture == "ForQuestionAnswering" else 5
    more = {"pooler_hidden_act": "relu", "pooler_dropout": 0.2, "cls_dropout": 0.3} if family != "Longformer" else {}
    reference = made(family, architecture, num_labels=count, **more)
    reference.save_pretrained(tmp_path / "theirs")
    ids = question()
    types = torch.randint(0, 2, ids.shape)
    model = load(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours").eval()
    for found in (reference, again):
        out = found(input_ids=ids, token_type_ids=types)
        hidden = model.encode(ids, types=types)
        if architecture == "Model":
            assert close(hidden, out.last_hidden_state)
            if family == "Longformer":
                assert close(model.pool(hidden), out.pooler_output)
        elif architecture == "ForQuestionAnswering":
            assert close(model.classify(hidden, "span"), torch.stack([out.start_logits, out.end_logits], dim=-1))
        else:
            assert close(model(ids, types=types), out.logits)
    assert load(tmp_path / "ours").spec == model.spec


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_head_of_its_own(family: str, tmp_path: Path) -> None:
    reference = made(family, "ForMaskedLM", tie_word_embeddings=False)
    reference.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert model.spec.language is not None
    assert not model.spec.language.tied
    save(model, tmp_path / "ours")
    ids = torch.randint(3, 100, (2, 15))
    for found in (model, load(tmp_path / "ours")):
        assert close(found(ids), reference(input_ids=ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Deberta", "DebertaV2"])
def test_the_language_head_as_microsoft_published_it(family: str, tmp_path: Path) -> None:
    """Its folders name the head `lm_predictions` and say nothing of `legacy`, which transformers then gets wrong."""
    reference = made(family, "ForMaskedLM", legacy=False)
    reference.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["pos_att_type"] = "c2p|p2c"
    del config["legacy"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    model = load(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    again = getattr(__import__("transformers"), f"{family}ForMaskedLM").from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(3, 100, (2, 15))
    expected = reference(input_ids=ids).logits
    assert close(model(ids), expected)
    assert close(again(input_ids=ids).logits, expected)


@torch.no_grad()
def test_global_tokens_in_every_number(tmp_path: Path) -> None:
    """None, one, many, all, different in each row, beside padding; hidden states, not logits alone."""
    reference = made("Longformer", "Model", attention_window=[8, 4, 8])
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 100, (4, 40), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 29:] = 0
    mask[3, 17:] = 0
    for share in (0.0, 0.03, 0.3, 1.0):
        marks = (torch.rand(ids.shape, generator=generator) < share).long()
        marks[0] = marks[0] * (share == 1.0)
        out = reference(input_ids=ids, attention_mask=mask, global_attention_mask=marks)
        hidden = model.encode(ids, segments=mask, marks=marks)
        assert close(hidden[mask == 1], out.last_hidden_state[mask == 1])
        if share == 0.0:
            assert close(model.encode(ids, segments=mask)[mask == 1], out.last_hidden_state[mask == 1])
            unlike = reference(input_ids=ids, attention_mask=mask, global_attention_mask=(ids < 30).long())
            assert not close(hidden[mask == 1], unlike.last_hidden_state[mask == 1])  # the seeded fault


@torch.no_grad()
def test_marked_texts_packed_are_marked_texts_alone(tmp_path: Path) -> None:
    """The task's own marks too: the first token of each text, the question of each."""
    for architecture in ("ForSequenceClassification", "ForQuestionAnswering"):
        made("Longformer", architecture).save_pretrained(tmp_path / architecture)
        model = load(tmp_path / architecture)
        texts = [question(1)[0], question(1)[0, 3:], question(1)[0, 2:]]
        packed = torch.cat([*texts, torch.zeros(3, dtype=torch.int64)]).unsqueeze(0)
        segments = torch.tensor([[1] * 15 + [2] * 12 + [3] * 13 + [0] * 3])
        together = model.hidden(packed, segments=segments)[0]
        start = 0
        for text in texts:
            assert close(together[start : start + len(text)], model.hidden(text.unsqueeze(0))[0])
            start += len(text)


@pytest.mark.parametrize(
    ("family", "wrong", "says"),
    [
        ("Longformer", {"attention_window": 5}, "must be even"),
        ("Longformer", {"attention_window": [4, 4]}, "3 of them"),
        ("DebertaV2", {"pos_att_type": "c2p|p2p"}, "must be of c2p, p2c"),
        ("DebertaV2", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd"),
        ("DebertaV2", {"conv_kernel_size": 4}, "must be odd"),
        ("DebertaV2", {"position_buckets": 8, "max_relative_positions": 4}, "`distance` beyond"),
        ("DebertaV2", {"embedding_size": 12}, "embedding_size"),
        ("Deberta", {"talking_head": True}, "talking_head"),
        ("Deberta", {"hidden_size": 37}, "must divide"),
    ],
)
def test_values_that_are_not_known_fail(family: str, wrong: dict[str, Any], says: str) -> None:
    kind = {"Longformer": "longformer", "DebertaV2": "deberta-v2", "Deberta": "deberta"}[family]
    with pytest.raises(ConfigError, match=says):
        read({**FAMILIES[family][1], **wrong, "model_type": kind})


def test_patterns_that_cannot_be_fail() -> None:
    from openbook.nn.build import check

    for pattern, says in (
        (spec.Pattern(causal=False, marked="prefix"), "both ways in a causal"),
        (spec.Pattern(marked="global"), "GlobalAttention"),
    ):
        layer = spec.Attention(heads=2, kv_heads=1, head_dim=4, pattern=pattern)
        block = spec.Block(branches=(spec.Branch(layer=layer),))
        model = spec.Model(embed=spec.Embed(vocab=5, dim=8), stack=spec.Stack(dim=8, blocks=(block,)), heads=())
        with pytest.raises(ConfigError, match=says):
            check(model)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_are_exact(name: str) -> None:
    """Of the bare model, on the meta device; the published figures leave out, or name apart, the token embedding."""
    config, total, tokens = COUNTS[name]
    model = read(config)[1]
    assert sum(parameters(inventory(model)).values()) == total
    assert model.embed.vocab * model.embed.dim == tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeBERTa-large", "DeBERTa-v2-xlarge", "Longformer-large-4096"])
def test_published_counts_are_the_references(name: str) -> None:
    import transformers

    config, total, _ = COUNTS[name]
    (architecture,) = config["architectures"]
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        made = getattr(transformers, architecture)(
            getattr(transformers, architecture.replace("Model", "Config"))(**values)
        )
    assert sum(parameter.numel() for parameter in made.parameters()) == total
