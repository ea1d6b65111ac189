"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before, one matrix for q, k and v stored [in,out]."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, Heads, branches_of, classes_of_last, language, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK, write_labels
from openbook.nn import spec

INERT = (
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "reorder_and_upcast_attn",
    "n_ctx",
)


def to_spec(config: Config) -> spec.Model:
    dim, heads, layers = config.size("n_embd"), config.size("n_head"), config.layers("n_layer")
    if dim % heads:
        raise ConfigError(f"`n_head` must divide `n_embd`: got {heads} and {dim} ({config.where}).")
    config.fixed("add_cross_attention", False, False)
    for inert in INERT:
        config.raw(inert)
    context = config.size("n_positions", 1024)
    norm = spec.Norm(kind="layer", eps=config.get("layer_norm_epsilon", 1e-5), bias=True)
    drop = config.get("resid_pdrop", 0.1)
    mlp = spec.MLP(
        hidden=config.size("n_inner", 4 * dim),
        activation=config.activation("activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    usual = (dim // heads) ** -0.5
    scale = usual if config.get("scale_attn_weights", True) else 1.0
    blocks = []
    for number in range(layers):
        own = scale / (number + 1) if by_layer else scale
        attention = spec.Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=dim // heads,
            bias=True,
            out_bias=True,
            scale=None if own == usual else own,
            dropout=config.get("attn_pdrop", 0.1),
        )
        parts = (attention, mlp)
        blocks.append(spec.Block(branches=tuple(spec.Branch(layer=part, norm=norm, dropout=drop) for part in parts)))
    embed = spec.Embed(
        vocab=config.size("vocab_size"),
        dim=dim,
        positions=spec.Learned(count=context),
        dropout=config.get("embd_pdrop", 0.1),
    )
    return spec.Model(
        embed=embed, stack=spec.Stack(dim=dim, blocks=tuple(blocks), final_norm=norm), heads=(), context=context
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions, mlp = layers_of(model.stack, spec.Attention), layers_of(model.stack, spec.MLP)[0]
    attention: spec.Attention = attentions[0]
    if not isinstance(model.embed.positions, spec.Learned) or model.stack.final_norm is None:
        raise CannotSay("it needs learned positions and a final norm")
    usual = attention.head_dim**-0.5
    return {
        "vocab_size": model.embed.vocab,
        "n_embd": model.stack.dim,
        "n_layer": len(model.stack.blocks),
        "n_head": attention.heads,
        "n_inner": mlp.hidden,
        "n_positions": model.embed.positions.count,
        "activation_function": "gelu_new" if mlp.activation == "gelu_tanh" else spell_activation(mlp.activation),
        "layer_norm_epsilon": model.stack.final_norm.eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "embd_pdrop": model.embed.dropout,
        "attn_pdrop": attention.dropout,
        "scale_attn_weights": attention.scale in (None, usual),
        "scale_attn_by_inverse_layer_idx": len({layer.scale for layer in attentions}) > 1,
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def tied_language(config: Config) -> Heads:
    return language(config, default=True)


HEAD, H = "transformer.", "transformer.h.{i}."
NAMES = (
    Name(f"{HEAD}wte", "embed.tokens"),
    Name(f"{HEAD}wpe", "embed.positions"),
    Name(f"{HEAD}ln_f", "stack.final_norm"),
    Name("lm_head", "heads.language"),
    Name("score", "heads.classes.linear"),
    Name(f"{H}ln_1", f"{BLOCK}.0.norm"),
    Name(f"{H}ln_2", f"{BLOCK}.1.norm"),
    Name(f"{H}attn.c_attn", f"{BLOCK}.0.layer.q", transpose=True, part=(0, 3)),
    Name(f"{H}attn.c_attn", f"{BLOCK}.0.layer.k", transpose=True, part=(1, 3)),
    Name(f"{H}attn.c_attn", f"{BLOCK}.0.layer.v", transpose=True, part=(2, 3)),
    Name(f"{H}attn.c_proj", f"{BLOCK}.0.layer.out", transpose=True),
    Name(f"{H}mlp.c_fc", f"{BLOCK}.1.layer.up", transpose=True),
    Name(f"{H}mlp.c_proj", f"{BLOCK}.1.layer.down", transpose=True),
)
FAMILY = Family(
    model_type="gpt2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={"GPT2LMHeadModel": tied_language, "GPT2Model": none, "GPT2ForSequenceClassification": classes_of_last},
    prefix="transformer.",
    ignore=(r".*attn\.bias", r".*attn\.masked_bias"),
    sizes={
        "vocab": "vocab_size",
        "dim": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "hidden": "n_inner",
        "context": "n_positions",
        "tied": "tie_word_embeddings",
    },
)
