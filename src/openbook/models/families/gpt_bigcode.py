"""SantaCoder and StarCoder (Allal et al. 2023; Li et al. 2023): GPT-2 with one key/value head for all."""

from __future__ import annotations

from typing import Any

from openbook.models.classic import (
    GPT,
    QKV,
    SUMMARY,
    block,
    head_names,
    heads_of,
    layer_norm,
    norm_of,
    read_sizes,
    write_sizes,
)
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, branches_of, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK
from openbook.nn import spec

# In which precision the softmax is taken (here always fp32), and how a server once ran it.
INERT = (
    *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads", "inference_runner"),
    *("max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache", "validate_runner_input"),
    *("classifier_dropout", *SUMMARY),
)


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, GPT, context=1024)
    config.fixed("add_cross_attention", False, False)
    for inert in INERT:
        config.raw(inert)
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=1 if config.get("multi_query", True) else size.heads,
        head_dim=size.head_dim,
        bias=True,
        out_bias=True,
        scale=None if config.get("scale_attn_weights", True) else 1.0,
        dropout=config.get("attn_pdrop", 0.1),
    )
    activation = config.activation("activation_function", "gelu_pytorch_tanh")
    mlp = spec.MLP(hidden=size.hidden, activation=activation, gated=False, bias=True)
    norm = layer_norm(config)
    one = block(attention, mlp, norm, dropout=config.get("resid_pdrop", 0.1))
    positions, drop = spec.Learned(count=size.context or 1024), config.get("embd_pdrop", 0.1)
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, positions=positions, dropout=drop),
        stack=spec.Stack(dim=size.dim, blocks=(one,) * size.layers, final_norm=norm),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if model.embed.positions is None:
        raise CannotSay("it needs learned positions")
    return write_sizes(model, GPT) | {
        "multi_query": attention.kv_heads == 1,
        "scale_attn_weights": attention.scale is None,
        "activation_function": spell_activation(mlp.activation),
        "layer_norm_epsilon": norm_of(model).eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "embd_pdrop": model.embed.dropout,
        "attn_pdrop": attention.dropout,
    }


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
    return (*BODY, *fused(f"{H}attn.c_attn", QKV, shares, groups), *head_names(model))


FAMILY = Family(
    model_type="gpt_bigcode",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads=heads_of("GPTBigCode", spans=False),
    prefix="transformer.",
    ignore=(r".*attn\.(bias|masked_bias)",),
    sizes=GPT,
)
