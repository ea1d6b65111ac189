"""Encoders that tell contents and positions apart, and encoders with windows and global tokens."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case

DEBERTA: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-6,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
}
LONGFORMER: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 50,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-6,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "attention_window": [4, 8, 4],
}


def _first(name: str, **values: Any) -> Case:
    idle = ("cls.predictions.bias",) if values.get("tie_word_embeddings") is False else ()
    return Case(name, "DebertaConfig", "DebertaForMaskedLM", {**DEBERTA, **values}, "encoder", idle=idle)


def _second(name: str, **values: Any) -> Case:
    return Case(name, "DebertaV2Config", "DebertaV2ForMaskedLM", {**DEBERTA, **values}, "encoder")


CASES = [
    _first("deberta"),
    _first("deberta-near", max_relative_positions=7, position_biased_input=False, type_vocab_size=0),
    _first("deberta-one-term", pos_att_type=["p2c"], hidden_act="relu", tie_word_embeddings=False),
    _first("deberta-plain", relative_attention=False, pos_att_type=["c2p"]),
    _second("deberta-v2", share_att_key=False, hidden_act="gelu_new"),
    _second(
        "deberta-v2-buckets",
        position_buckets=8,
        max_relative_positions=33,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
    ),
    _second(
        "deberta-v2-convolution",
        position_buckets=6,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        conv_kernel_size=5,
        conv_groups=3,
        conv_act="gelu",
    ),
    _second("deberta-v2-one-term", pos_att_type=["c2p"], share_att_key=True, max_relative_positions=5),
    _second("deberta-v2-plain", relative_attention=False),
    Case("longformer", "LongformerConfig", "LongformerForMaskedLM", LONGFORMER, "encoder", marked=True),
    Case(
        "longformer-odd",
        "LongformerConfig",
        "LongformerForMaskedLM",
        {**LONGFORMER, "attention_window": 6, "hidden_act": "relu", "pad_token_id": 0},
        "encoder",
        marked=True,
    ),
]
