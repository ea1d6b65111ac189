"""Published DeBERTa and Longformer configurations at full size, and how many parameters their bare models hold."""

from __future__ import annotations

from typing import Any

_BOTH = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
}
_BUCKETS = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
_CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 64}


def _sizes(dim: int, layers: int, heads: int, hidden: int) -> dict[str, Any]:
    return {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
    }


def deberta(*sizes: int) -> dict[str, Any]:
    return {"model_type": "deberta", "architectures": ["DebertaModel"], "vocab_size": 50265, **_BOTH, **_sizes(*sizes)}


def deberta_v2(*sizes: int, **more: Any) -> dict[str, Any]:
    own = {"model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "vocab_size": 128100}
    return {**own, **_BOTH, **_BUCKETS, **_sizes(*sizes), **more}


def longformer(*sizes: int) -> dict[str, Any]:
    own = {"model_type": "longformer", "architectures": ["LongformerModel"], "vocab_size": 50265, "pad_token_id": 1}
    places = {"max_position_embeddings": 4098, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "attention_window": 512}
    return {**own, **places, **_sizes(*sizes)}


# config, all parameters of the bare model (no head; the pooler for Longformer), those of its token embedding
COUNTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "DeBERTa-base": (deberta(768, 12, 12, 3072), 138_601_728, 38_603_520),
    "DeBERTa-large": (deberta(1024, 24, 16, 4096), 405_163_008, 51_471_360),
    "DeBERTa-v2-xlarge": (deberta_v2(1536, 24, 24, 6144, **_CONVOLUTION), 884_593_152, 196_761_600),
    "DeBERTa-v2-xxlarge": (deberta_v2(1536, 48, 24, 6144, **_CONVOLUTION), 1_564_549_632, 196_761_600),
    "DeBERTa-v3-xsmall": (deberta_v2(384, 12, 6, 1536), 70_682_112, 49_190_400),
    "DeBERTa-v3-small": (deberta_v2(768, 6, 12, 3072), 141_304_320, 98_380_800),
    "DeBERTa-v3-base": (deberta_v2(768, 12, 12, 3072), 183_831_552, 98_380_800),
    "DeBERTa-v3-large": (deberta_v2(1024, 24, 16, 4096), 434_012_160, 131_174_400),
    "Longformer-base-4096": (longformer(768, 12, 12, 3072), 148_659_456, 38_603_520),
    "Longformer-large-4096": (longformer(1024, 24, 16, 4096), 434_600_960, 51_471_360),
}
