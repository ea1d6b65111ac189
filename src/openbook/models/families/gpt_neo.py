"""GPT-Neo (Black et al. 2021): GPT-3's alternation of dense and banded layers; scores are not scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import SIZES, Family, layers_of
from openbook.models.names import Name
from openbook.models.parts import block_names
from openbook.nn import spec

KEYS = {**SIZES, "layers": "num_layers", "heads": "num_heads"}
TABLE: fields.Table = {
    spec.Attention: {"dropout": ("attention_dropout", 0.0)},
    spec.MLP: {"activation": ("activation_function", "gelu_new")},
    spec.Norm: {"eps": ("layer_norm_epsilon", 1e-5)},
    spec.Branch: {"dropout": ("resid_dropout", 0.0)},
    spec.Embed: {"dropout": ("embed_dropout", 0.0)},
}


def kinds(config: Config, layers: int) -> list[str]:
    """`global` or `local` for each layer: `attention_types` lists runs of them and how often each is repeated."""
    runs = config.raw("attention_types", [[["global", "local"], 12]])
    config.inert("attention_layers")  # the same, written out
    try:
        found = [kind for run, times in runs for _ in range(min(times, layers)) for kind in run]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`attention_types` must be a list of [kinds, times]: got {runs!r} ({config.where})."
        ) from error
    if len(found) != layers or not set(map(str, found)) <= {"global", "local"}:
        raise ConfigError(
            f"`attention_types` must say 'global' or 'local' for {layers} layers: got {runs!r} ({config.where})."
        )
    return found


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, KEYS, context=2048), fields.read(config, TABLE)
    config.inert("classifier_dropout", *classic.SUMMARY)
    patterns = {"global": spec.Pattern(), "local": spec.Pattern(window=config.size("window_size", 256))}
    attention = replace(size.attention, out_bias=True, scale=1.0, **said[spec.Attention])
    mlp, norm = size.mlp(**said[spec.MLP]), spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    layers = [replace(attention, pattern=patterns[kind]) for kind in kinds(config, size.layers)]
    blocks = tuple(classic.block(layer, mlp, norm, **said[spec.Branch]) for layer in layers)
    return size.model(blocks, norm, size.embed(**said[spec.Embed], learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    found = [layer.pattern.window for layer in layers_of(model.stack, spec.Attention)]
    own = {
        "attention_types": [[["global" if window is None else "local" for window in found], 1]],
        "window_size": next((window for window in found if window is not None), 256),
    }
    return classic.write_sizes(model, KEYS) | fields.write(model, TABLE) | own


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.wpe", "embed.positions"),
    Name("transformer.ln_f", "stack.final_norm"),
    *block_names(f"{H}attn.attention.", q="q_proj", k="k_proj", v="v_proj", out="out_proj"),
    *block_names(H, norm1="ln_1", norm2="ln_2", up="mlp.c_fc", down="mlp.c_proj"),
)
FAMILY = Family(
    model_type="gpt_neo",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + classic.head_names(model),
    heads=classic.heads_of("GPTNeo"),
    prefix="transformer.",
    ignore=(r".*attention\.(bias|masked_bias)",),
    sizes=KEYS,
)
