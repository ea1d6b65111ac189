"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba 2 with attention in a few named layers, feed-forward behind each."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config
from openbook.models.families import jamba, mamba2
from openbook.models.family import CannotSay, Family, language, none
from openbook.models.hybrids import ATTENTION, by_layer, inside
from openbook.models.modern import attention, biased, rms, write_bias
from openbook.models.parts import decoder, read_shape, write_decoder
from openbook.nn import spec

INERT = ("num_logits_to_keep", "z_loss_coefficient", "attn_rotary_emb", "layers_block_type")


MAMBA: fields.Fields = {**jamba.MAMBA, "groups": ("mamba_n_groups", 1), "state": ("mamba_d_state", 256)}


def to_spec(config: Config) -> spec.Model:
    shape, norm = read_shape(config, context=262144, kv_heads=8), rms(config, 1e-5)
    config.inert(*INERT, "layer_types")
    act = config.activation("hidden_act", "silu")
    full, layer = attention(config, shape, share=0.5, **biased(config)), read_mamba(config, shape.dim, act, norm)
    mlp = spec.MLP(hidden=shape.hidden, activation=act, bias=config.get("mlp_bias", False))
    attends = config.raw("attn_layer_indices", [])
    if not isinstance(attends, list) or not all(type(number) is int for number in attends):
        raise ConfigError(f"`attn_layer_indices` must list numbers of layers: got {attends!r} ({config.where}).")
    return decoder(shape, norm, lambda number: full if number in attends else layer, mlp)


def read_mamba(config: Config, dim: int, activation: str, norm: spec.Norm) -> spec.StateSpaceDual:
    """The layers with a state, as `mamba_n_heads` and its like say them."""
    config.inert("mamba_chunk_size")
    heads, inner = config.size("mamba_n_heads", 128), config.size("mamba_expand", 2) * dim
    given = config.raw("mamba_d_head", "auto")
    size = max(inner // heads, 1) if given == "auto" else config.size("mamba_d_head")
    if heads * size != inner:
        raise ConfigError(
            f"`mamba_n_heads` · `mamba_d_head` must be `mamba_expand` · `hidden_size`: got {heads} · {size}, {inner} "
            f"({config.where})."
        )
    said = fields.take(config, MAMBA) | mamba2.read_limits(config)
    return spec.StateSpaceDual(heads=heads, head_dim=size, activation=activation, norm=norm, **said)


def from_spec(model: spec.Model) -> dict[str, Any]:
    kinds = [isinstance(block.branches[0].layer, spec.Attention) for block in model.stack.blocks]
    own = {
        "mlp_bias": fields.first(model, spec.MLP).bias,
        "attn_layer_indices": [number for number, attends in enumerate(kinds) if attends],
    }
    return write_decoder(model) | write_bias(model) | write_mamba(model) | own


def write_mamba(model: spec.Model) -> dict[str, Any]:
    """The keys that `read_mamba` reads."""
    layer = fields.first(model, spec.StateSpaceDual)
    expand, left = divmod(layer.heads * layer.head_dim, model.stack.dim)
    if left:
        raise CannotSay("it needs channels that are a multiple of its width")
    own = {"mamba_n_heads": layer.heads, "mamba_d_head": layer.head_dim, "mamba_expand": expand}
    return fields.say(layer, MAMBA) | own | mamba2.write_limits(layer)


MIXER = inside(mamba2.NAMES)
FAMILY = Family(
    model_type="bamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: jamba.NAMES + by_layer(model, lambda x: ATTENTION if isinstance(x, spec.Attention) else MIXER),
    heads={"BambaForCausalLM": language, "BambaModel": none},
    prefix="model.",
)
