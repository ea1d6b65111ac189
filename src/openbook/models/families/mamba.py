"""Mamba 1 (Gu & Dao 2023): one selective state space in every block, no attention, no positions."""

from __future__ import annotations

import math
from typing import Any

from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay, Family, Heads, layers_of, none
from openbook.models.family import language as language_head
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

INERT = (
    "residual_in_fp32",
    "rescale_prenorm_residual",
    "use_mambapy",
    "use_associative_scan",
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_init_scheme",
    "time_step_floor",
    "d_inner",
    "d_model",
    "n_layer",
    "ssm_cfg",
    "rms_norm",
    "fused_add_norm",
    "pad_vocab_size_multiple",
)


def to_spec(config: Config) -> spec.Model:
    dim = config.size("hidden_size")
    inner = config.size("intermediate_size", int(config.positive("expand", 2.0, most=1e6) * dim))
    usual = config.raw("time_step_rank", "auto") == "auto"
    rank = math.ceil(dim / 16) if usual else config.size("time_step_rank")
    for inert in INERT:
        config.raw(inert)
    layer = spec.Selective(
        inner=inner,
        state=config.size("state_size", 16),
        kernel=config.size("conv_kernel", 4),
        rank=rank,
        activation=config.activation("hidden_act", "silu"),
        bias=config.get("use_bias", False),
        conv_bias=config.get("use_conv_bias", True),
    )
    norm = spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5))
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=norm),))
    return spec.Model(
        embed=spec.Embed(vocab=config.size("vocab_size"), dim=dim),
        stack=spec.Stack(dim=dim, blocks=(block,) * config.layers("num_hidden_layers"), final_norm=norm),
        heads=(),
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer: spec.Selective = layers_of(model.stack, spec.Selective)[0]
    if model.stack.final_norm is None:
        raise CannotSay("it needs a final norm")
    expand = layer.inner / model.stack.dim
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "intermediate_size": layer.inner,
        "expand": int(expand) if expand.is_integer() else expand,
        "num_hidden_layers": len(model.stack.blocks),
        "state_size": layer.state,
        "conv_kernel": layer.kernel,
        "time_step_rank": layer.rank,
        "hidden_act": spell_activation(layer.activation),
        "use_bias": layer.bias,
        "use_conv_bias": layer.conv_bias,
        "layer_norm_epsilon": model.stack.final_norm.eps,
        "tie_word_embeddings": model.language is None or model.language.tied,
    }


def language(config: Config) -> Heads:
    return language_head(config, default=True)


M = "backbone.layers.{i}."
NAMES = (
    Name("backbone.embeddings", "embed.tokens"),
    Name("backbone.norm_f", "stack.final_norm"),
    Name("lm_head", "heads.language"),
    Name(f"{M}norm", f"{BLOCK}.0.norm"),
    Name(f"{M}mixer.in_proj", f"{BLOCK}.0.layer.project"),
    Name(f"{M}mixer.conv1d.weight", f"{BLOCK}.0.layer.conv", insert=1),
    Name(f"{M}mixer.conv1d.bias", f"{BLOCK}.0.layer.conv_bias"),
    Name(f"{M}mixer.x_proj", f"{BLOCK}.0.layer.select"),
    Name(f"{M}mixer.dt_proj", f"{BLOCK}.0.layer.step"),
    Name(f"{M}mixer.A_log", f"{BLOCK}.0.layer.log_decay"),
    Name(f"{M}mixer.D", f"{BLOCK}.0.layer.skip"),
    Name(f"{M}mixer.out_proj", f"{BLOCK}.0.layer.out"),
)
FAMILY = Family(
    model_type="mamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={"MambaForCausalLM": language, "MambaModel": none},
    prefix="backbone.",
    sizes={
        "vocab": "vocab_size",
        "dim": "hidden_size",
        "layers": "num_hidden_layers",
        "hidden": "intermediate_size",
        "tied": "tie_word_embeddings",
    },
)
