"""Law 1: every family gives the numbers of its reference implementation.

Maximum absolute difference ≤ 1e-5 × max(1, largest reference value) in fp32, over real tokens, both config spellings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.models.load import load, save
from openbook.models.registry import family_of
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
def outputs(case: Case, model: LanguageModel, count: int = 23) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Our logits and the reference's of all real tokens, without padding and with."""
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
            marks = case.marks(ids)
            more = {} if marks is None else {"global_attention_mask": marks}
            theirs = reference(input_ids=ids, attention_mask=attention, **more).logits
            ours = model(ids, segments=None if attention is not mask else attention, marks=marks)
            real = attention
        yield ours[real == 1], theirs[real == 1]


def agrees(case: Case, model: LanguageModel, count: int = 23) -> bool:
    """Whether logits agree."""
    return all(close(ours, theirs) for ours, theirs in outputs(case, model, count))


def reference_type(case: Case) -> str:
    """The `model_type` of the case's reference."""
    import transformers

    return str(getattr(transformers, case.config).model_type)


def headed(case: Case, architecture: str) -> Any:
    """The reference of the case's configuration with the heads of this architecture, random weights."""
    import transformers

    count = 2 if "Question" in architecture else 5
    config = getattr(transformers, case.config)(**case.values, num_labels=count)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    reference = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
    return reference


def heads_agree(case: Case, architecture: str, reference: Any, model: LanguageModel) -> bool:
    """Whether hidden states and the logits of all heads agree over real tokens."""
    ids = tokens(case, 4, 21)
    mask = torch.ones_like(ids)
    mask[1:3, 14:] = 0
    count = model.spec.embed.types
    types = torch.randint(0, count, ids.shape, generator=torch.Generator().manual_seed(1)) if count else None
    given = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if count else {})
    marks = case.marks(ids)
    given |= {} if marks is None else {"global_attention_mask": marks}
    if "MultipleChoice" in architecture:
        given = {name: value.unflatten(0, (2, 2)) for name, value in given.items()}
    out = reference(**given)
    hidden = model.encode(ids, segments=mask, types=types, marks=marks)
    real = mask == 1
    pairs = []
    for name in model.heads:
        match name:
            case "pooler" if len(model.heads) == 1:
                pairs.append((model.pool(hidden), out.pooler_output))
            case "pooler":
                pass
            case "language":
                pairs.append((model.head(hidden)[real], (out.get("prediction_logits", out.get("logits")))[real]))
            case "span":
                theirs = torch.stack([out.start_logits, out.end_logits], dim=-1)
                pairs.append((model.classify(hidden, "span")[real], theirs[real]))
            case _:
                ours = model.classify(hidden, name, mask)
                theirs = next(value for key, value in reversed(out.items()) if key.endswith("logits"))
                ours, theirs = (ours[real], theirs[real]) if ours.ndim == 3 else (ours, theirs)
                pairs.append((ours, theirs.reshape(ours.shape)))
    if set(model.heads) <= {"pooler"}:
        pairs.append((hidden[real], out.last_hidden_state[real]))
    return all(close(*pair) for pair in pairs)


@each(ALL, fast=True)
def test_logits_equal_the_reference(case: Case, root: Path) -> None:
    assert agrees(case, load(case.folder(root)))


@each(ALL)
def test_a_wrong_weight_breaks_the_law(case: Case, root: Path) -> None:
    model = load(case.folder(root))
    with torch.no_grad():
        vectors = {name: p for name, p in model.stack.blocks[0].named_parameters() if p.ndim == 1}
        vectors = vectors or dict(model.stack.blocks[0].named_parameters())  # norms may have none
        vector = next((p for name, p in vectors.items() if "norm.weight" in name), next(iter(vectors.values())))
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


HEADED = [(case, name) for case in ENCODERS for name in family_of(reference_type(case)).heads]


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "architecture"),
    [
        pytest.param(case, name, id=f"{case.name}-{name}", marks=() if case.core else pytest.mark.slow)
        for case, name in HEADED
    ],
)
def test_encoder_heads(case: Case, architecture: str, tmp_path: Path) -> None:
    """Every architecture that an encoder is published as gives the reference's numbers, padded rows too."""
    reference = headed(case, architecture)
    reference.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert heads_agree(case, architecture, reference, model)
    save(model, tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    assert heads_agree(case, architecture, again, load(tmp_path / "ours"))


@torch.no_grad()
def test_a_head_of_another_activation_breaks_the_law(tmp_path: Path) -> None:
    case = next(case for case in ENCODERS if case.name == "roberta")
    reference = headed(case, "RobertaForSequenceClassification")
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    model.get_submodule("heads.classes.transform").act = torch.relu
    assert not heads_agree(case, "RobertaForSequenceClassification", reference, model)


@pytest.mark.parametrize("published", ["beside the weight", "as it once was"])
def test_an_encoder_with_a_head_of_its_own(published: str, tmp_path: Path) -> None:
    """Its bias is published beside the weight; before transformers 5 it was one tensor with `cls.predictions.bias`."""
    from safetensors.torch import load_file, save_file

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
