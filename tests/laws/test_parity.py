"""Law 1: every family gives the numbers of its reference implementation.

Maximum absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32, over real tokens, both config spellings.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from openbook.models.load import load
from openbook.nn.model import LanguageModel
from tests.families import ALL, DECODERS, ENCODER_DECODERS, ENCODERS, SMALL_BERT, Case, each, tokens

BOUND = 1e-5


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """The law's bound."""
    return bool((ours - theirs).abs().max() <= BOUND * max(1.0, float(theirs.abs().max())))


@torch.no_grad()
def agrees(case: Case, model: LanguageModel, count: int = 23) -> bool:
    """Whether logits agree, with and without padding."""
    ids = tokens(case, 3, count)
    mask = torch.ones_like(ids)
    mask[1, count - 6 :] = 0
    reference = case.reference()
    for attention in (torch.ones_like(ids), mask):
        if case.kind == "encoder-decoder":
            target = tokens(case, 3, 9, seed=1)
            theirs = reference(input_ids=ids, attention_mask=attention, decoder_input_ids=target).logits
            ours = model(target, source=ids, source_segments=attention)
            real = torch.ones_like(target)
        else:
            theirs = reference(input_ids=ids, attention_mask=attention).logits
            ours = model(ids, segments=None if attention is not mask else attention)
            real = attention
        if not close(ours[real == 1], theirs[real == 1]):
            return False
    return True


@each(ALL, fast=True)
def test_logits_equal_the_reference(case: Case, root: Path) -> None:
    assert agrees(case, load(case.folder(root)))


@each(ALL)
def test_a_wrong_weight_breaks_the_law(case: Case, root: Path) -> None:
    model = load(case.folder(root))
    with torch.no_grad():
        own = list(model.stack.blocks[0].parameters())
        vector = next((parameter for parameter in own if parameter.ndim == 1), own[0])
        vector[0] = vector[0] * 1.01 + 0.01
    assert not agrees(case, model)


def old_spelling(folder: Path, out: Path) -> Path:
    """The same folder with rope_theta and rope_scaling instead of rope_parameters."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    rules = config.pop("rope_parameters")
    if "full_attention" in rules:
        local = rules["sliding_attention"]["rope_theta"]
        if local != rules["full_attention"]["rope_theta"]:
            config["rope_local_base_freq"] = local
        rules = rules["full_attention"]
    config["rope_theta"] = rules.pop("rope_theta")
    if "partial_rotary_factor" in rules:
        config["partial_rotary_factor"] = rules.pop("partial_rotary_factor")
    if rules.get("rope_type", "default") != "default":
        rules["type"] = rules.pop("rope_type")
        config["rope_scaling"] = rules
    (out / "config.json").write_text(json.dumps(config))
    return out


ROTARY = [case for case in DECODERS if "rope_parameters" in case.values]


@each(ROTARY)
def test_old_spelling_means_the_same(case: Case, root: Path, tmp_path: Path) -> None:
    assert agrees(case, load(old_spelling(case.folder(root), tmp_path / "old")))


@pytest.mark.parametrize("case", [c for c in ROTARY if any(kind in c.name for kind in ("dynamic", "yarn", "longrope"))])
def test_longer_than_the_original_context(case: Case, root: Path) -> None:
    assert agrees(case, load(case.folder(root)), count=50)


@torch.no_grad()
@each(ENCODERS)
def test_encoder_parts(case: Case, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(3)
    ids = tokens(case, 2, 11)
    types = torch.randint(0, 3, ids.shape)
    for architecture in (
        "BertModel",
        "BertForPreTraining",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ):
        count = 2 if architecture == "BertForQuestionAnswering" else 5
        config = transformers.BertConfig(**case.values, num_labels=count)
        config._attn_implementation = "eager"
        reference = getattr(transformers, architecture)(config).eval()
        reference.save_pretrained(tmp_path / architecture)
        model = load(tmp_path / architecture)
        out = reference(input_ids=ids, token_type_ids=types)
        hidden = model.encode(ids, types=types)
        match architecture:
            case "BertModel":
                assert close(hidden, out.last_hidden_state)
                assert close(model.pool(hidden), out.pooler_output)
            case "BertForPreTraining":
                assert close(model.head(hidden), out.prediction_logits)
                assert close(model.classify(hidden, "next"), out.seq_relationship_logits)
            case "BertForNextSentencePrediction":
                assert close(model.classify(hidden, "next"), out.logits)
            case "BertForQuestionAnswering":
                assert close(model.classify(hidden, "span"), torch.stack([out.start_logits, out.end_logits], dim=-1))
            case _:
                assert close(model(ids, types=types), out.logits)


@pytest.mark.parametrize("published", ["beside the weight", "as it once was"])
def test_an_encoder_with_a_head_of_its_own(published: str, tmp_path: Path) -> None:
    """Its bias is published beside the weight; before transformers 5 it was one tensor with `cls.predictions.bias`."""
    from safetensors.torch import load_file, save_file

    from openbook.models.load import save

    values = {**SMALL_BERT, "tie_word_embeddings": False}
    case = Case("bert-untied", "BertConfig", "BertForMaskedLM", values, "encoder")
    folder = case.folder(tmp_path)
    if published == "as it once was":
        tensors = load_file(folder / "model.safetensors")
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load(folder)
    assert agrees(case, model)
    save(model, tmp_path / "again")
    assert agrees(case, load(tmp_path / "again"))


@torch.no_grad()
def test_bare_models_and_classifiers(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(5)
    values = next(case for case in DECODERS if case.name == "llama").values
    ids = torch.randint(3, 100, (2, 9))
    base = transformers.LlamaModel(transformers.LlamaConfig(**values)).eval()
    base.save_pretrained(tmp_path / "base")
    assert close(load(tmp_path / "base").encode(ids), base(ids).last_hidden_state)
    config = transformers.LlamaConfig(**{**values, "pad_token_id": 0}, num_labels=4)
    judge = transformers.LlamaForSequenceClassification(config).eval()
    judge.save_pretrained(tmp_path / "judge")
    assert close(load(tmp_path / "judge")(ids), judge(ids).logits)


@torch.no_grad()
def test_cross_attention_sees_its_own_segment(root: Path) -> None:
    case = ENCODER_DECODERS[0]
    model = load(case.folder(root))
    a, b = tokens(case, 1, 7, 1), tokens(case, 1, 5, 2)
    c, d = tokens(case, 1, 4, 3), tokens(case, 1, 6, 4)
    sources = torch.tensor([[1] * 7 + [2] * 5])
    targets = torch.tensor([[1] * 4 + [2] * 6])
    packed = model(torch.cat([c, d], 1), segments=targets, source=torch.cat([a, b], 1), source_segments=sources)
    assert close(packed[:, :4], model(c, source=a))
    assert close(packed[:, 4:], model(d, source=b))
