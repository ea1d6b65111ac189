"""Published encoders at full size, as their config.json says them, and their numbers of parameters.

A number is that of the bare model (with its pooler, where the family has one), unless the architecture says otherwise.
"""

from __future__ import annotations

from typing import Any


def bert(kind: str, name: str, vocab: int, dim: int, layers: int, heads: int, hidden: int, **more: Any) -> Any:
    return {
        "model_type": kind,
        "architectures": [name],
        "vocab_size": vocab,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        **more,
    }


def roberta(kind: str, name: str, vocab: int, dim: int, layers: int, heads: int) -> dict[str, Any]:
    more = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-05, "pad_token_id": 1}
    return bert(kind, name, vocab, dim, layers, heads, 4 * dim, **more)


def albert(dim: int, layers: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
    shared = {"embedding_size": 128, "num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu_new"}
    return bert("albert", "AlbertModel", 30000, dim, layers, heads, hidden, **shared, **more)


def electra(dim: int, layers: int, heads: int, narrow: int, name: str = "ElectraModel") -> dict[str, Any]:
    return bert("electra", name, 30522, dim, layers, heads, 4 * dim, embedding_size=narrow)


def modern(dim: int, layers: int, heads: int, hidden: int, name: str = "ModernBertModel") -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "architectures": [name],
        "vocab_size": 50368,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "max_position_embeddings": 8192,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "norm_eps": 1e-05,
        "pad_token_id": 50283,
    }


DISTILBERT = {
    "model_type": "distilbert",
    "architectures": ["DistilBertModel"],
    "vocab_size": 30522,
    "dim": 768,
    "hidden_dim": 3072,
    "n_layers": 6,
    "n_heads": 12,
    "max_position_embeddings": 512,
}
MPNET = roberta("mpnet", "MPNetModel", 30527, 768, 12, 12)
del MPNET["type_vocab_size"]
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "BERT-base uncased": (bert("bert", "BertModel", 30522, 768, 12, 12, 3072), 109_482_240),
    "BERT-large uncased": (bert("bert", "BertModel", 30522, 1024, 24, 16, 4096), 335_141_888),
    "MiniLM-L6": (bert("bert", "BertModel", 30522, 384, 6, 12, 1536), 22_713_216),
    "RoBERTa-base": (roberta("roberta", "RobertaModel", 50265, 768, 12, 12), 124_645_632),
    "RoBERTa-large": (roberta("roberta", "RobertaModel", 50265, 1024, 24, 16), 355_359_744),
    "XLM-RoBERTa-base": (roberta("xlm-roberta", "XLMRobertaModel", 250002, 768, 12, 12), 278_043_648),
    "XLM-RoBERTa-large": (roberta("xlm-roberta", "XLMRobertaModel", 250002, 1024, 24, 16), 559_890_432),
    "CamemBERT-base": (roberta("camembert", "CamembertModel", 32005, 768, 12, 12), 110_621_952),
    "DistilBERT": (DISTILBERT, 66_362_880),
    "ALBERT-base": (albert(768, 12, 12, 3072), 11_683_584),
    "ALBERT-xxlarge": (albert(4096, 12, 64, 16384), 222_595_584),
    "ELECTRA-small": (electra(256, 12, 4, 128), 13_483_008),
    "ELECTRA-base": (electra(768, 12, 12, 768), 108_891_648),
    "ELECTRA-large": (electra(1024, 24, 16, 1024), 334_092_288),
    "MPNet-base": (MPNET, 109_486_464),
    "ModernBERT-base": (modern(768, 22, 12, 1152), 149_014_272),
    "ModernBERT-large": (modern(1024, 28, 16, 2624), 394_781_696),
    "ModernBERT-base with its head": (modern(768, 22, 12, 1152, "ModernBertForMaskedLM"), 149_655_232),
}
