"""Random configurations of the encoders in the line of BERT, for test_parity_at_random.py."""

from __future__ import annotations

import random
from typing import Any

Drawn = tuple[str, str, dict[str, Any], str]
ACTIVATIONS = ["silu", "gelu", "gelu_new", "relu", "gelu_pytorch_tanh", "tanh"]


def base(draw: random.Random) -> dict[str, Any]:
    heads = draw.choice([1, 3])
    return {
        "vocab_size": 97,
        "hidden_size": heads * draw.choice([3, 5, 8]),
        "num_hidden_layers": draw.choice([1, 2, 4]),
        "num_attention_heads": heads,
        "intermediate_size": draw.choice([1, 9, 40]),
        "max_position_embeddings": draw.choice([30, 41]),
        "type_vocab_size": draw.choice([1, 2]),
        "hidden_act": draw.choice(ACTIVATIONS),
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": draw.random() < 0.5,
    }


def roberta(draw: random.Random) -> Drawn:
    return "RobertaConfig", "RobertaForMaskedLM", base(draw) | {"pad_token_id": draw.choice([0, 1, 2])}, "encoder"


def distilbert(draw: random.Random) -> Drawn:
    values = base(draw)
    keys = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    keys |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    values = {
        keys.get(key, key): value for key, value in values.items() if key not in ("type_vocab_size", "layer_norm_eps")
    }
    return "DistilBertConfig", "DistilBertForMaskedLM", values, "encoder"


def albert(draw: random.Random) -> Drawn:
    values = base(draw)
    groups = draw.randint(1, values["num_hidden_layers"])
    inner = draw.choice([1, 2, 3]) if groups < values["num_hidden_layers"] else 1
    special = {"embedding_size": draw.choice([2, 6, 11]), "num_hidden_groups": groups, "inner_group_num": inner}
    return "AlbertConfig", "AlbertForMaskedLM", values | special, "encoder"


def electra(draw: random.Random) -> Drawn:
    values = base(draw)
    narrow = draw.choice([values["hidden_size"], 2, 7, 33])
    return "ElectraConfig", "ElectraForMaskedLM", values | {"embedding_size": narrow}, "encoder"


def mpnet(draw: random.Random) -> Drawn:
    values = {key: value for key, value in base(draw).items() if key != "type_vocab_size"}
    return "MPNetConfig", "MPNetForMaskedLM", values, "encoder"


def modernbert(draw: random.Random) -> Drawn:
    values, heads = base(draw), draw.choice([1, 3])
    layers = values["num_hidden_layers"]

    def coin() -> bool:
        return draw.random() < 0.5

    theta = {kind: {"rope_type": "default", "rope_theta": draw.choice([100.0, 1e4])} for kind in KINDS}
    special = {
        "hidden_size": heads * draw.choice([4, 6, 10]),
        "num_attention_heads": heads,
        "intermediate_size": draw.choice([3, 9, 40]),
        "hidden_activation": values.pop("hidden_act"),
        "norm_eps": values.pop("layer_norm_eps"),
        "local_attention": draw.choice([2, 7, 64]),
        "layer_types": [draw.choice(KINDS) for _ in range(layers)],
        "rope_parameters": theta,
        **{key: coin() for key in ("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")},
        "classifier_activation": draw.choice(ACTIVATIONS),
        **{f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    }
    del values["type_vocab_size"]
    return "ModernBertConfig", "ModernBertForMaskedLM", values | special, "encoder"


def deberta(draw: random.Random) -> Drawn:
    special = {
        "type_vocab_size": draw.choice([0, 2]),
        "relative_attention": draw.random() < 0.8,
        "max_relative_positions": draw.choice([-1, 3, 20, 60]),
        "pos_att_type": draw.choice(["c2p", "p2c", "p2c|c2p", ["c2p", "p2c"], None]),
        "position_biased_input": draw.random() < 0.5,
    }
    return "DebertaConfig", "DebertaForMaskedLM", base(draw) | special, "encoder"


def deberta_v2(draw: random.Random) -> Drawn:
    _, _, values, kind = deberta(draw)
    special = {
        "max_relative_positions": draw.choice([-1, 13, 60]),
        "position_buckets": draw.choice([-1, 4, 7, 16]),
        "share_att_key": draw.random() < 0.5,
        "norm_rel_ebd": draw.choice(["none", "layer_norm"]),
        "conv_kernel_size": draw.choice([0, 1, 3, 7]),
        "conv_act": draw.choice(ACTIVATIONS),
    }
    return "DebertaV2Config", "DebertaV2ForMaskedLM", values | special, kind


def longformer(draw: random.Random) -> Drawn:
    values = base(draw)
    windows = [draw.choice([4, 8]) for _ in range(values["num_hidden_layers"])]
    special = {"attention_window": draw.choice([4, 6, windows]), "pad_token_id": draw.choice([0, 1, 2])}
    return "LongformerConfig", "LongformerForMaskedLM", values | special, "encoder"


KINDS = ("full_attention", "sliding_attention")
DRAWS = [roberta, distilbert, albert, electra, mpnet, modernbert, deberta, deberta_v2, longformer]
