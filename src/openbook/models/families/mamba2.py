"""Mamba 2 (Dao & Gu 2024): a state space with one decay for each head in every block, no attention, no positions."""

from __future__ import annotations

import math
from typing import Any

from openbook.errors import ConfigError
from openbook.models import fields
from openbook.models.config import Config
from openbook.models.families import mamba
from openbook.models.family import SIZES, Family, language, none
from openbook.models.hybrids import read_states, widened, write_states
from openbook.models.names import Name
from openbook.nn import spec

SIZE: fields.Fields = {"heads": ("num_heads", 128), "head_dim": ("head_dim", 64), "groups": ("n_groups", 8)}
LAYER: fields.Fields = {**mamba.LAYER, **SIZE, "state": ("state_size", 128)}


def to_spec(config: Config) -> spec.Model:
    dim, norm = config.size("hidden_size", 4096), spec.Norm(eps=config.get("layer_norm_epsilon", 1e-5))
    config.inert(*mamba.INERT, "time_step_rank", "chunk_size", "norm_before_gate")
    layer = spec.StateSpaceDual(norm=norm, **fields.take(config, LAYER), **read_limits(config))
    inner = widened(config, dim)
    if inner != layer.heads * layer.head_dim:
        raise ConfigError(
            f"`num_heads` · `head_dim` must be `expand` · `hidden_size`: got {layer.heads} · {layer.head_dim} and "
            f"{inner} ({config.where})."
        )
    return read_states(config, layer, dim, vocab=32768)


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


def write_limits(layer: spec.StateSpaceDual, key: str = "time_step_limit") -> dict[str, Any]:
    """The key that `read_limits` reads."""
    return {key: [layer.step_least, math.inf if layer.step_most is None else layer.step_most]}


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer = fields.first(model, spec.StateSpaceDual)
    return write_states(model, layer.heads * layer.head_dim) | fields.say(layer, LAYER) | write_limits(layer)


M, OURS = mamba.M, mamba.OURS
NAMES = (*mamba.SHARED, Name(f"{M}dt_bias", f"{OURS}step"), Name(f"{M}norm", f"{OURS}norm"))
FAMILY = Family(
    model_type="mamba2",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={"Mamba2ForCausalLM": language, "Mamba2Model": none},
    prefix="backbone.",
    sizes={word: SIZES[word] for word in ("vocab", "dim", "layers", "head_dim", "tied")} | {"heads": "num_heads"},
)
