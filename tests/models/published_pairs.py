"""Encoder-decoders at full size: configurations as published, and their numbers of parameters."""

from __future__ import annotations

from typing import Any


def t5(dim: int, hidden: int, layers: int, heads: int, size: int = 64) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 32128,
        "d_model": dim,
        "d_kv": size,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
    }


def bart(kind: str, name: str, vocab: int, dim: int, layers: int, heads: int) -> dict[str, Any]:
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * dim))
    }
    places = {"max_position_embeddings": 1024}
    return {"model_type": kind, "architectures": [name], "vocab_size": vocab, "d_model": dim, **sides, **places}


# The bare models of BART and mBART: the bias of their logits is no parameter there.
PARAMETERS: list[tuple[str, dict[str, Any], int]] = [
    ("t5-base", t5(768, 3072, 12, 12), 222_903_552),
    ("t5-large", t5(1024, 4096, 24, 16), 737_668_096),
    ("t5-3b", t5(1024, 16384, 24, 32, 128), 2_851_598_336),
    ("t5-11b", t5(1024, 65536, 24, 128, 128), 11_307_321_344),
    ("bart-base", bart("bart", "BartModel", 50265, 768, 6, 12), 139_420_416),
    ("bart-large", bart("bart", "BartModel", 50265, 1024, 12, 16), 406_291_456),
    ("mbart-large-cc25", bart("mbart", "MBartModel", 250027, 1024, 12, 16), 610_851_840),
]
