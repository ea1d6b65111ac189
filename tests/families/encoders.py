"""Encoders in the line of BERT."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case
from tests.families.core import SMALL_BERT


def _like(name: str, family: str, drop: tuple[str, ...] = (), head: str = "ForMaskedLM", **values: Any) -> Case:
    sizes = {key: value for key, value in SMALL_BERT.items() if key not in drop}
    idle = ("lm_head.bias", "predictions.bias") if values.get("tie_word_embeddings") is False else ()
    return Case(name, f"{family}Config", f"{family}{head}", {**sizes, **values}, "encoder", idle=idle)


DISTILBERT: dict[str, Any] = {
    "vocab_size": 101,
    "dim": 36,
    "hidden_dim": 70,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 40,
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "qa_dropout": 0.4,
    "seq_classif_dropout": 0.15,
}
MODERN: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "norm_eps": 1e-4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
CASES = [
    _like("roberta", "Roberta", type_vocab_size=1, pad_token_id=1, hidden_act="relu"),
    _like("roberta-padding", "Roberta", pad_token_id=2, classifier_dropout=0.3, tie_word_embeddings=False),
    _like("xlm-roberta", "XLMRoberta", type_vocab_size=1),
    _like("camembert", "Camembert", type_vocab_size=1),
    Case("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", DISTILBERT, "encoder"),
    Case(
        "distilbert-relu",
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {**DISTILBERT, "activation": "relu", "tie_word_embeddings": False},
        "encoder",
    ),
    _like(
        "albert", "Albert", embedding_size=20, num_hidden_layers=5, hidden_act="gelu_new", classifier_dropout_prob=0.3
    ),
    _like(
        "albert-groups",
        "Albert",
        embedding_size=20,
        num_hidden_layers=5,
        num_hidden_groups=2,
        inner_group_num=3,
        tie_word_embeddings=False,
    ),
    _like("albert-unshared", "Albert", embedding_size=20, num_hidden_layers=3, num_hidden_groups=3, hidden_act="relu"),
    _like("electra", "Electra", embedding_size=20, hidden_act="relu", summary_last_dropout=0.25),
    _like("electra-wide", "Electra", embedding_size=36, tie_word_embeddings=False, summary_activation="tanh"),
    _like("mpnet", "MPNet", drop=("type_vocab_size",)),
    Case("modernbert", "ModernBertConfig", "ModernBertForMaskedLM", MODERN, "encoder"),
    Case(
        "modernbert-biased",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {
            **MODERN,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "decoder_bias": False,
            "classifier_bias": True,
            "classifier_activation": "relu",
            "classifier_pooling": "mean",
            "hidden_activation": "silu",
            "tie_word_embeddings": False,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
        },
        "encoder",
    ),
]
