"""GPT-Neo (Black et al. 2021): GPT-3's alternation of dense and banded layers; scores are not scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic
from openbook.models.config import Config, spell_activation
from openbook.models.family import SIZES, Family, branches_of, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {**SIZES, "layers": "num_layers", "heads": "num_heads"}


def kinds(config: Config, layers: int) -> list[str]:
    """`global` or `local` for each layer: `attention_types` lists runs of them and how often each is repeated."""
    runs = config.raw("attention_types", [[["global", "local"], 12]])
    config.raw("attention_layers")  # the same, written out
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
    size, norm = classic.read_sizes(config, KEYS, context=2048), classic.layer_norm(config)
    for inert in (*classic.SUMMARY, "classifier_dropout"):
        config.raw(inert)
    window, drop = config.size("window_size", 256), config.get("resid_dropout", 0.0)
    patterns = {"global": spec.Pattern(), "local": spec.Pattern(window=window)}
    attention = replace(size.attention, out_bias=True, scale=1.0, dropout=config.get("attention_dropout", 0.0))
    mlp = size.mlp(config.activation("activation_function", "gelu_new"))
    blocks = tuple(
        classic.block(replace(attention, pattern=patterns[kind]), mlp, norm, dropout=drop)
        for kind in kinds(config, size.layers)
    )
    return size.model(blocks, norm, size.embed(config.get("embed_dropout", 0.0), learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions = layers_of(model.stack, spec.Attention)
    found = [layer.pattern.window for layer in attentions]
    return classic.write_sizes(model, KEYS) | {
        "attention_types": [[["global" if window is None else "local" for window in found], 1]],
        "window_size": next((window for window in found if window is not None), 256),
        "activation_function": spell_activation(layers_of(model.stack, spec.MLP)[0].activation),
        "layer_norm_epsilon": classic.norm_of(model).eps,
        "resid_dropout": branches_of(model.stack)[0].dropout,
        "embed_dropout": model.embed.dropout,
        "attention_dropout": attentions[0].dropout,
    }


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.wpe", "embed.positions"),
    Name("transformer.ln_f", "stack.final_norm"),
    Name(f"{H}ln_1", f"{BLOCK}.0.norm"),
    *(Name(f"{H}attn.attention.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in ("q", "k", "v", "out")),
    Name(f"{H}ln_2", f"{BLOCK}.1.norm"),
    Name(f"{H}mlp.c_fc", f"{BLOCK}.1.layer.up"),
    Name(f"{H}mlp.c_proj", f"{BLOCK}.1.layer.down"),
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
