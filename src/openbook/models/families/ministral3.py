"""Ministral 3 (Mistral AI 2025): a Mistral whose queries grow sharper with their position (as Llama 4's)."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, layers_of
from openbook.models.modern import attention, decoder_heads, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape, write_windows
from openbook.nn import spec

SHARPER = "llama_4_scaling_beta"
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    SHARPER: 0.1,
}


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=262144, kv_heads=8, head_dim=128)
    key = "rope_scaling" if config.has("rope_scaling") and not config.has("rope_parameters") else "rope_parameters"
    rules = config.raw(key, ROPE)
    if not isinstance(rules, dict) or SHARPER not in rules or "original_max_position_embeddings" not in rules:
        raise ConfigError(f"`{key}` need `{SHARPER}` and `original_max_position_embeddings` ({config.where}).")
    sharper = Config(rules, f"rope_parameters of {config.where}")
    temperature = spec.Temperature(
        every=sharper.size("original_max_position_embeddings"), scale=sharper.get(SHARPER, 0.1)
    )
    kept = {key: value for key, value in rules.items() if key not in (SHARPER, "max_position_embeddings")}
    config.data = config.data | {key: kept}
    layer = attention(config, shape, config.get("sliding_window", None, int), temperature=temperature)
    return decoder(shape, rms(config, 1e-5), lambda _: layer, mlp(config, shape))


def from_spec(model: spec.Model) -> dict[str, Any]:
    rule = layers_of(model.stack, spec.Attention)[0].temperature
    if rule is None:
        raise CannotSay("it needs queries that grow sharper")
    said = write(model) | {"sliding_window": write_windows(model)["sliding_window"]}
    rope = {"original_max_position_embeddings": rule.every, **said["rope_parameters"], SHARPER: rule.scale}
    return said | {"rope_parameters": rope}


FAMILY = Family(
    model_type="ministral3",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Ministral3"),
    prefix="model.",
    ignore=IGNORE,
)
