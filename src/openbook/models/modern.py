"""What the newer dense decoders share beyond parts.py: how attention and norms are read, and which heads there are.

A family's own file says what is special about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from openbook.models.classic import heads_of, write_heads
from openbook.models.config import Config, read_rope, share_of
from openbook.models.family import Heads, language, layers_of
from openbook.models.names import Name, fused
from openbook.models.parts import BLOCK, Shape, write_decoder
from openbook.nn import spec


def attention(
    config: Config,
    shape: Shape,
    window: int | None = None,
    *,
    theta: float = 1e4,
    share: float = 1.0,
    neighbours: bool = False,
    **special: Any,
) -> spec.Attention:
    """One layer's attention with rotary positions; `theta` and `share` are defaults, `special` is what is added."""
    rope = read_rope(config, shape.head_dim, shape.context, theta=theta, share=share)
    return replace(
        shape.attention,
        pattern=spec.Pattern(window=window),
        rope=replace(rope, neighbours=neighbours),
        dropout=config.get("attention_dropout", 0.0),
        **special,
    )


def biased(config: Config, default: bool = False) -> dict[str, Any]:
    """Biases on all four maps of attention, as `attention_bias` says."""
    bias = config.get("attention_bias", default)
    return {"bias": bias, "out_bias": bias}


def rms(config: Config, default: float = 1e-6) -> spec.Norm:
    """RMSNorm."""
    return spec.Norm(eps=config.get("rms_norm_eps", default))


def mlp(config: Config, shape: Shape, act: str = "silu", *, gated: bool = True, bias: bool = False) -> spec.MLP:
    """The feed-forward layer; `act` is the default activation."""
    activation = config.activation("hidden_act", act)
    return spec.MLP(hidden=shape.hidden, activation=activation, gated=gated, bias=bias)


def write(model: spec.Model, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """The shared keys, and those of the heads."""
    return write_decoder(model, eps=eps) | write_heads(model)


def write_bias(model: spec.Model) -> dict[str, Any]:
    """`attention_bias`."""
    return {"attention_bias": layers_of(model.stack, spec.Attention)[0].bias}


def write_share(model: spec.Model, said: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` that say how much of a head is turned, where silence does not mean all of it."""
    turned: spec.Attention = layers_of(model.stack, spec.Attention)[0]
    share = {} if turned.rope is None else {"partial_rotary_factor": share_of(turned.rope, turned.head_dim)}
    return {"rope_parameters": said["rope_parameters"] | share}


def decoder_heads(name: str, tied: bool = False, *, tokens: bool = True, last: bool = True) -> Any:
    """The architectures of a family: a language head tied or not by default, classes of the last and of every token."""
    found: dict[str, Callable[[Config], Heads]] = heads_of(
        name, lambda config: language(config, default=tied), tokens=tokens, spans=False
    )
    return {key: head for key, head in found.items() if last or "Sequence" not in key}


def inverse(value: float) -> float:
    """The number that a config.json divides by to multiply with `value`, such that 1 / it is `value` again."""
    candidates = (round(1 / value, 10), 1 / value)
    return next((number for number in candidates if number and 1 / number == value), 1 / value)


FUSED_GATED = (
    *fused("model.layers.{i}.mlp.gate_up_proj", (f"{BLOCK}.1.layer.gate", f"{BLOCK}.1.layer.up"), (1, 1)),
    Name("model.layers.{i}.mlp.down_proj", f"{BLOCK}.1.layer.down"),
)
AFTER_NORMS = (
    Name("model.layers.{i}.post_attention_layernorm", f"{BLOCK}.0.norm"),
    Name("model.layers.{i}.post_feedforward_layernorm", f"{BLOCK}.1.norm"),
)
PARALLEL_NORM = (Name("model.layers.{i}.input_layernorm", "stack.blocks.{i}.norm"),)
