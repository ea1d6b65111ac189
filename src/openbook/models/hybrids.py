"""What families that mix attention with layers that keep a state share: which layer stands where, and its names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config, spell_activation
from openbook.models.family import CannotSay
from openbook.models.fields import first
from openbook.models.names import Name
from openbook.models.parts import BASE, write_labels
from openbook.nn import spec


def state_rank(config: Config, key: str, dim: int) -> int:
    """The width the steps of a state space are made from: a sixteenth of the model's unless said."""
    return math.ceil(dim / 16) if config.raw(key, "auto") == "auto" else config.size(key)


def widened(config: Config, dim: int) -> int:
    """The channels of a layer with a state: `expand` times the width."""
    return int(config.positive("expand", 2.0, most=1e6) * dim)


def read_states(config: Config, layer: spec.Layer, dim: int, vocab: int | None = None) -> spec.Model:
    """A model of nothing but these layers."""
    norm = spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5))
    block = spec.Block(branches=(spec.Branch(layer=layer, norm=norm),))
    return spec.Model(
        embed=spec.Embed(vocab=config.size("vocab_size", vocab), dim=dim),
        stack=spec.Stack(dim=dim, blocks=(block,) * config.layers("num_hidden_layers"), final_norm=norm),
        heads=(),
    )


def write_states(model: spec.Model, inner: int) -> dict[str, Any]:
    """The keys that `read_states` and `widened` read; `inner` is how many channels there are."""
    expand = inner / model.stack.dim
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "expand": int(expand) if expand.is_integer() else expand,
        "num_hidden_layers": len(model.stack.blocks),
        "layer_norm_epsilon": first(model, spec.Norm).eps,
        "tie_word_embeddings": model.language is None or model.language.tied,
    }


def every(config: Config, what: str, layers: int, period: int, offset: int) -> list[bool]:
    """Which of the layers are `what`: one in `{what}_layer_period`, from `{what}_layer_offset` on."""
    period = config.size(f"{what}_layer_period", period)
    offset = config.get(f"{what}_layer_offset", offset)
    if not 0 <= offset < period:
        raise ConfigError(
            f"`{what}_layer_offset` must be 0 to {period - 1}, below `{what}_layer_period`: got {offset} "
            f"({config.where})."
        )
    return [number % period == offset for number in range(layers)]


def say_every(found: Sequence[bool], what: str) -> dict[str, int]:
    """The keys that `every` reads; raises CannotSay where the layers have no period."""
    for period in range(1, len(found) + 2):
        for offset in range(period):
            if all(one == (number % period == offset) for number, one in enumerate(found)):
                return {f"{what}_layer_period": period, f"{what}_layer_offset": offset}
    raise CannotSay(f"its layers of kind '{what}' do not stand at equal distances")


def write_plain(model: spec.Model, attention: spec.Attention, mlp: spec.MLP) -> dict[str, Any]:
    """The keys that these families share, positions left out."""
    if model.stack.final_norm is None:
        raise CannotSay("it needs a final norm")
    return {
        "vocab_size": model.embed.vocab,
        "hidden_size": model.stack.dim,
        "intermediate_size": mlp.hidden,
        "num_hidden_layers": len(model.stack.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.stack.final_norm.eps,
        "hidden_act": spell_activation(mlp.activation),
        "attention_dropout": attention.dropout,
        "tie_word_embeddings": model.language is None or model.language.tied,
    } | write_labels(model)


def by_layer(model: spec.Model, names: Callable[[spec.Layer], tuple[Name, ...]]) -> tuple[Name, ...]:
    """The names of each block's first layer, `{i}` filled in: what is published under one name may be two of ours."""
    return tuple(
        replace(name, theirs=name.theirs.replace("{i}", str(i)), ours=name.ours.replace("{i}", str(i)))
        for i, block in enumerate(model.stack.blocks)
        for name in names(block.branches[0].layer)
    )


OUTER = tuple(name for name in BASE if "{i}" not in name.theirs)  # embedding, last norm, heads
ATTENTION = tuple(name for name in BASE if ".self_attn." in name.theirs)


def inside(names: tuple[Name, ...]) -> tuple[Name, ...]:
    """The names of Mamba's layers, where they are one kind among others."""
    theirs, own = "backbone.layers.{i}.mixer.", "model.layers.{i}.mamba."
    return tuple(replace(name, theirs=name.theirs.replace(theirs, own)) for name in names if theirs in name.theirs)
