"""Llama 4, text (Meta 2025): layers that see their own chunk, and layers without positions whose queries grow sharper;
one expert of many beside a shared one, chosen by a sigmoid that scales what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config
from openbook.models.experts import mixture_of
from openbook.models.families.smollm3 import rotated
from openbook.models.family import Family, language, layers_of, none
from openbook.models.modern import attention, biased, rms, write, write_bias
from openbook.models.names import Name, fused
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, decoder, read_shape, windows
from openbook.nn import spec

INERT = ("router_aux_loss_coef", "router_jitter_noise", "for_llm_compressor")  # the reference computes nothing of them
ROUTING = spec.Routing(score="sigmoid", renormalise=False, input_scaled=True)
STEPS: fields.Fields = {"every": ("floor_scale", 8192), "scale": ("attn_scale", 0.1)}
MIXTURE: fields.Fields = {"experts": ("num_local_experts", 16), "top_k": ("num_experts_per_tok", 1)}
CHUNKED = "chunked_attention"


def read_attention(config: Config, shape: Any) -> list[spec.Attention]:
    """One for each layer."""
    turned = rotated(config, shape.layers)
    size = config.get("attention_chunk_size", None, int) if "attention_chunk_size" in config.data else 8192
    chunks = windows(config, shape.layers, lambda i: turned[i] and size is not None, size, CHUNKED)
    sharp = spec.Temperature(offset=1, **fields.take(config, STEPS))
    tuned = config.raw("attn_temperature_tuning", True)
    if not isinstance(tuned, int):  # published as 4, which means yes
        raise ConfigError(f"`attn_temperature_tuning` must be true or false: got {tuned!r} ({config.where}).")
    sharper = sharp if tuned else None
    even = spec.Norm(eps=config.get("rms_norm_eps", 1e-5), weight=False)
    normed = spec.QueryKeyNorm(norm=even, rotated=True) if config.get("use_qk_norm", True) else None
    whole = attention(config, shape, theta=5e5, neighbours=True, norm=normed, **biased(config))
    found = []
    for number, chunk in enumerate(chunks):
        own = whole if turned[number] else replace(whole, rope=None, norm=None, temperature=sharper)
        found.append(replace(own, pattern=spec.Pattern(chunk=chunk)))
    return found


def sparse(config: Config, layers: int) -> list[bool]:
    """Which layers have experts: those that `moe_layers` lists, else every `interleave_moe_layer_step`-th."""
    step, listed = config.size("interleave_moe_layer_step", 1), config.raw("moe_layers")
    if listed is None:
        return [(number + 1) % step == 0 for number in range(layers)]
    if not isinstance(listed, list) or not all(isinstance(number, int) for number in listed):
        raise ConfigError(f"`moe_layers` must list numbers of layers: got {listed!r} ({config.where}).")
    return [number in listed for number in range(layers)]


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=131072, kv_heads=8, head_dim=128)
    config.inert(*INERT)
    expert = spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu"))
    dense = replace(expert, hidden=config.size("intermediate_size_mlp", 16384))
    moe = spec.MoE(expert=expert, routing=ROUTING, shared=expert, **fields.take(config, MIXTURE))
    layers, mixed = read_attention(config, shape), sparse(config, shape.layers)
    return decoder(shape, rms(config, 1e-5), layers.__getitem__, lambda i: moe if mixed[i] else dense)


def from_spec(model: spec.Model) -> dict[str, Any]:
    layers: list[spec.Attention] = layers_of(model.stack, spec.Attention)
    moe, ffns = mixture_of(model), [block.branches[-1].layer for block in model.stack.blocks]
    sharper = next((layer.temperature for layer in layers if layer.temperature is not None), None)
    hidden = next((layer.hidden for layer in ffns if isinstance(layer, spec.MLP)), 16384)
    said = {
        "intermediate_size": moe.expert.hidden,
        "intermediate_size_mlp": hidden,
        **fields.say(moe, MIXTURE),
        "moe_layers": [number for number, layer in enumerate(ffns) if isinstance(layer, spec.MoE)],
        "no_rope_layers": [int(layer.rope is not None) for layer in layers],
        "layer_types": [CHUNKED if layer.pattern.chunk else "full_attention" for layer in layers],
        "attention_chunk_size": next((layer.pattern.chunk for layer in layers if layer.pattern.chunk), None),
        "use_qk_norm": any(layer.norm is not None for layer in layers),
        "attn_temperature_tuning": sharper is not None,
    }
    steps = {} if sharper is None else fields.say(sharper, STEPS)
    return write(model) | write_bias(model) | said | steps


def names(_: spec.Model) -> tuple[Name, ...]:
    theirs, ours = "model.layers.{i}.feed_forward", f"{BLOCK}.1.layer"
    parts, halves = ("gate", "up", "down"), (f"{ours}.experts.gate", f"{ours}.experts.up")
    return (
        *BASE,
        *PRE_NORMS,
        Name(f"{theirs}.router", f"{ours}.router"),
        *fused(f"{theirs}.experts.gate_up_proj", halves, (1, 1), transpose=True, stacked=True),
        Name(f"{theirs}.experts.down_proj", f"{ours}.experts.down", True, stacked=True),
        *(Name(f"{theirs}.shared_expert.{part}_proj", f"{ours}.shared.{part}") for part in parts),
        *(Name(f"{theirs}.{part}_proj", f"{ours}.{part}") for part in parts),
    )


FAMILY = Family(
    model_type="llama4_text",
    to_spec=to_spec,
    from_spec=from_spec,
    names=names,
    heads={"Llama4ForCausalLM": language, "Llama4TextModel": none},
    prefix="model.",
    ignore=IGNORE,
)
