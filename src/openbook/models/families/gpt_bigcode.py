"""SantaCoder and StarCoder (Allal et al. 2023; Li et al. 2023): GPT-2 with one key/value head for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

# In which precision the softmax is taken (here always fp32), and how a server once ran it.
INERT = (
    *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads", "inference_runner"),
    *("max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache", "validate_runner_input"),
    *("classifier_dropout", *classic.SUMMARY),
)


TABLE = classic.gpt_table(("activation_function", "gelu_pytorch_tanh"), 0.1)


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, classic.GPT, context=1024), fields.read(config, TABLE)
    config.fixed("add_cross_attention", False, False)
    config.inert(*INERT)
    kv_heads = 1 if config.get("multi_query", True) else size.heads
    scale = None if config.get("scale_attn_weights", True) else 1.0
    shape = replace(size.attention, kv_heads=kv_heads, bias=True, out_bias=True, scale=scale)
    return classic.plain(size, replace(shape, **said[spec.Attention]), said, learned=True)


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention = fields.first(model, spec.Attention)
    own = {"multi_query": attention.kv_heads == 1, "scale_attn_weights": attention.scale is None}
    return classic.write_sizes(model, classic.GPT) | fields.write(model, TABLE) | own


H = "transformer.h.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.wpe", "embed.positions"),
    Name("transformer.ln_f", "stack.final_norm"),
    *block_names(H, norm1="ln_1", norm2="ln_2", out="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
)


def names(model: spec.Model) -> tuple[Name, ...]:
    attention = fields.first(model, spec.Attention)
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
