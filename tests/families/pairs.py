"""Encoder-decoders in the line of the 2017 Transformer: BART, mBART, Marian, Pegasus."""

from __future__ import annotations

from typing import Any

from tests.families.case import Case

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 36,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 60,
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}


def _case(name: str, config: str, architecture: str, **values: Any) -> Case:
    return Case(name, config, architecture, {**SMALL, **values}, "encoder-decoder")


CASES = [
    _case("bart", "BartConfig", "BartForConditionalGeneration"),
    _case(
        "bart-scaled", "BartConfig", "BartForConditionalGeneration", scale_embedding=True, activation_function="relu"
    ),
    _case("mbart", "MBartConfig", "MBartForConditionalGeneration", scale_embedding=True),
    _case("marian", "MarianConfig", "MarianMTModel", scale_embedding=True, activation_function="swish"),
    _case("marian-odd", "MarianConfig", "MarianMTModel", d_model=33, decoder_attention_heads=11),
    _case(
        "marian-apart",
        "MarianConfig",
        "MarianMTModel",
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        vocab_size=97,
        decoder_vocab_size=101,
    ),
    _case("pegasus", "PegasusConfig", "PegasusForConditionalGeneration", activation_function="relu"),
]
