"""SantaCoder and StarCoder (Allal et al. 2023; Li et al. 2023): GPT-2 with one key/value head for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic
from openbook.models.config import Config
from openbook.models.family import Family, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec

# In which precision the softmax is taken (here always fp32), and how a server once ran it.
INERT = (
    *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads", "inference_runner"),
    *("max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache", "validate_runner_input"),
    *("classifier_dropout", *classic.SUMMARY),
)


def to_spec(config: Config) -> spec.Model:
    size, rates = classic.read_sizes(config, classic.GPT, context=1024), classic.read_rates(config, 0.1)
    config.fixed("add_cross_attention", False, False)
    for inert in INERT:
        config.raw(inert)
    attention = replace(
        size.attention,
        kv_heads=1 if config.get("multi_query", True) else size.heads,
        bias=True,
        out_bias=True,
        scale=None if config.get("scale_attn_weights", True) else 1.0,
        dropout=rates.attention,
    )
    norm, mlp = classic.layer_norm(config), size.mlp(config.activation("activation_function", "gelu_pytorch_tanh"))
    block = classic.block(attention, mlp, norm, dropout=rates.residual)
    return size.model(block, norm, size.embed(rates.embed, learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = layers_of(model.stack, spec.Attention)[0]
    said = {"multi_query": attention.kv_heads == 1, "scale_attn_weights": attention.scale is None}
    return classic.write_gpt(model) | said


H = "transformer.h.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.wpe", "embed.positions"),
    Name("transformer.ln_f", "stack.final_norm"),
    Name(f"{H}ln_1", f"{BLOCK}.0.norm"),
    Name(f"{H}ln_2", f"{BLOCK}.1.norm"),
    Name(f"{H}attn.c_proj", f"{BLOCK}.0.layer.out"),
    Name(f"{H}mlp.c_fc", f"{BLOCK}.1.layer.up"),
    Name(f"{H}mlp.c_proj", f"{BLOCK}.1.layer.down"),
)


def names(model: spec.Model) -> tuple[Name, ...]:
    attention = layers_of(model.stack, spec.Attention)[0]
    shares, groups = ((attention.heads, 1, 1), 1) if attention.kv_heads == 1 else ((1, 1, 1), attention.heads)
    return (*BODY, *fused(f"{H}attn.c_attn", classic.QKV, shares, groups), *classic.head_names(model))


FAMILY = Family(
    model_type="gpt_bigcode",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=classic.heads_of("GPTBigCode", spans=False),
    prefix="transformer.",
    ignore=(r".*attn\.(bias|masked_bias)",),
    sizes=classic.GPT,
)
