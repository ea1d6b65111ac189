"""Families with experts in their other architectures, and what a config.json may say that nothing here can compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import ConfigError
from openbook.models.load import load
from openbook.models.registry import read
from tests.families import ALL, Case

CASES = {case.name: case for case in ALL}
OTHERS = [
    (name, f"{stem}{kind}")
    for name, stem in (("qwen2-moe", "Qwen2Moe"), ("qwen3-moe", "Qwen3Moe"), ("gpt-oss", "GptOss"))
    for kind in ("Model", "ForSequenceClassification", "ForTokenClassification")
] + [("granitemoe", "GraniteMoeModel"), ("olmoe", "OlmoeModel"), ("dbrx", "DbrxModel")]


@torch.no_grad()
@pytest.mark.parametrize(("name", "architecture"), OTHERS, ids=[row[1] for row in OTHERS])
def test_other_architectures_equal_the_reference(name: str, architecture: str, tmp_path: Path) -> None:
    base = CASES[name]
    case = Case(architecture, base.config, architecture, {**base.values, "pad_token_id": 0, "num_labels": 4})
    model = load(case.folder(tmp_path))
    ids = torch.randint(3, base.values["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(0))
    theirs = case.reference()(input_ids=ids)
    expected = theirs.last_hidden_state if architecture.endswith("Model") else theirs.logits
    ours = model.hidden(ids) if architecture.endswith("Model") else model(ids)
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def said(name: str, **changed: Any) -> dict[str, Any]:
    reference = CASES[name].reference().config.to_dict()
    return {**reference, **changed}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gpt-oss", {"swiglu_alpha": 1.5}, "swiglu_alpha"),
    ("gpt-oss", {"hidden_act": "gelu"}, "hidden_act"),
    ("gpt-oss", {"swiglu_limit": 0.0}, "limit"),
    ("qwen2-moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
    ("qwen2-moe", {"num_experts_per_tok": 9}, "top_k"),
    ("qwen3-moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("granitemoe", {"logits_scaling": 0.0}, "logits_scaling"),
    ("olmoe", {"clip_qkv": 3.0}, "clip_qkv"),
    ("dbrx", {"attn_config": 3}, "attn_config"),
    ("dbrx", {"resid_pdrop": 0.1}, "resid_pdrop"),
    ("switch", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("switch", {"dense_act_fn": "unheard"}, "unheard"),
]


@pytest.mark.parametrize(("name", "changed", "why"), BAD, ids=[f"{row[0]} {row[2]}" for row in BAD])
def test_what_cannot_be_computed_is_refused(name: str, changed: dict[str, Any], why: str) -> None:
    read(said(name))
    with pytest.raises(ConfigError, match=why):
        read(said(name, **changed))
