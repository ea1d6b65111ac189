"""Mamba 2 (Dao & Gu 2024): a state space with one decay for each head in every block, no attention, no positions."""

from __future__ import annotations

import math
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.families.mamba import INERT as MAMBA_INERT
from openbook.models.families.mamba import NAMES as MAMBA_NAMES
from openbook.models.family import CannotSay, Family, language, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

INERT = (*MAMBA_INERT, "time_step_rank", "chunk_size", "norm_before_gate")


def to_spec(config: Config) -> spec.Model:
    dim = config.size("hidden_size", 4096)
    for inert in INERT:
        config.raw(inert)
    norm = spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5))
    layer = spec.StateSpaceDual(
        heads=config.size("num_heads", 128),
        head_dim=config.size("head_dim", 64),
        groups=config.size("n_groups", 8),
        state=config.size("state_size", 128),
        kernel=config.size("conv_kernel", 4),
        activation=config.activation("hidden_act", "silu"),
        bias=config.get("use_bias", False),
        conv_bias=config.get("use_conv_bias", True),
        norm=norm,
        **read_limits(config),
    )
    inner = int(config.positive("expand", 2.0, most=1e6) * dim)
    if inner != layer.heads * layer.head_dim:
        raise ConfigError(
            f"`num_heads` · `head_dim` must be `expand` · `hidden_size`: got {layer.heads} · {layer.head_dim} and "
            f"{inner} ({config.where})."
        )
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=norm),))
    return spec.Model(
        embed=spec.Embed(vocab=config.size("vocab_size", 32768), dim=dim),
        stack=spec.Stack(dim=dim, blocks=(block,) * config.layers("num_hidden_layers"), final_norm=norm),
        heads=(),
    )


def read_limits(config: Config, key: str = "time_step_limit") -> dict[str, Any]:
    """The least and the greatest step; without end is none."""
    values = config.raw(key, [0.0, math.inf])
    found = values if isinstance(values, list | tuple) else []
    found = [one["__float__"] if isinstance(one, dict) and "__float__" in one else one for one in found]
    try:
        least, most = map(float, found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`{key}` must be two numbers: got {values!r} ({config.where}).") from error
    return {"step_least": least, "step_most": None if most == math.inf else most}


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer: spec.StateSpaceDual = layers_of(model.stack, spec.StateSpaceDual)[0]
    if model.stack.final_norm is None:
        raise CannotSay("it needs a final norm")
    expand = layer.heads * layer.head_dim / model.stack.dim
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "num_heads": layer.heads,
        "head_dim": layer.head_dim,
        "expand": int(expand) if expand.is_integer() else expand,
        "num_hidden_layers": len(model.stack.blocks),
        "n_groups": layer.groups,
        "state_size": layer.state,
        "conv_kernel": layer.kernel,
        "hidden_act": spell_activation(layer.activation),
        "use_bias": layer.bias,
        "use_conv_bias": layer.conv_bias,
        "layer_norm_epsilon": model.stack.final_norm.eps,
        "time_step_limit": [layer.step_least, math.inf if layer.step_most is None else layer.step_most],
        "tie_word_embeddings": model.language is None or model.language.tied,
    }


M, OURS = "backbone.layers.{i}.mixer.", f"{BLOCK}.0.layer."
NAMES = (
    *(name for name in MAMBA_NAMES if "proj" not in name.theirs),
    Name(f"{M}in_proj", f"{OURS}project"),
    Name(f"{M}dt_bias", f"{OURS}step"),
    Name(f"{M}norm", f"{OURS}norm"),
    Name(f"{M}out_proj", f"{OURS}out"),
)
FAMILY = Family(
    model_type="mamba2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={"Mamba2ForCausalLM": language, "Mamba2Model": none},
    prefix="backbone.",
    sizes={
        "vocab": "vocab_size",
        "dim": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_heads",
        "head_dim": "head_dim",
        "tied": "tie_word_embeddings",
    },
)
