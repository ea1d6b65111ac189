"""GPT-J (Wang & Komatsuzaki 2021): branches side by side after one norm, neighbours turned in a part of each head."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.classic import (
    GPT,
    SUMMARY,
    biased_language,
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
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, GPT, context=2048)
    for key in ("rotary", "scale_attn_weights"):
        config.fixed(key, True, True)
    for inert in SUMMARY:
        config.raw(inert)
    turned = config.size("rotary_dim", 64)
    if turned % 2 or turned > size.head_dim:
        raise ConfigError(f"`rotary_dim` must be even and at most {size.head_dim}: got {turned} ({config.where}).")
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        rope=spec.Rope(dim=turned, neighbours=True),
        dropout=config.get("attn_pdrop", 0.0),
    )
    activation = config.activation("activation_function", "gelu_new")
    mlp = spec.MLP(hidden=size.hidden, activation=activation, gated=False, bias=True)
    norm = layer_norm(config)
    one = block(attention, mlp, norm, "shared", config.get("resid_pdrop", 0.0))
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, dropout=config.get("embd_pdrop", 0.0)),
        stack=spec.Stack(dim=size.dim, blocks=(one,) * size.layers, final_norm=norm),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    if attention.rope is None:
        raise CannotSay("it needs rotary positions")
    return write_sizes(model, GPT) | {
        "rotary_dim": attention.rope.dim,
        "activation_function": spell_activation(mlp.activation),
        "layer_norm_epsilon": norm_of(model).eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "embd_pdrop": model.embed.dropout,
        "attn_pdrop": attention.dropout,
        "tie_word_embeddings": model.language is not None and model.language.tied,
    }


H = "transformer.h.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.ln_f", "stack.final_norm"),
    Name(f"{H}ln_1", "stack.blocks.{i}.norm"),
    Name(f"{H}attn.out_proj", f"{BLOCK}.0.layer.out"),
    Name(f"{H}mlp.fc_in", f"{BLOCK}.1.layer.up"),
    Name(f"{H}mlp.fc_out", f"{BLOCK}.1.layer.down"),
)
APART = tuple(Name(f"{H}attn.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in "qkv")
FAMILY = Family(
    model_type="gptj",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: BODY + APART + head_names(model),
    heads=heads_of("GPTJ", biased_language, tokens=False),
    prefix="transformer.",
    ignore=(r".*attn\.(bias|masked_bias)",),
    sizes=GPT,
)
