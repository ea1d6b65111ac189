"""GPT-Neo (Black et al. 2021): GPT-3's alternation of dense and banded layers; scores are not scaled."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError
from openbook.models.classic import SUMMARY, block, head_names, heads_of, layer_norm, norm_of, read_sizes, write_sizes
from openbook.models.config import Config, spell_activation
from openbook.models.family import SIZES, CannotSay, Family, branches_of, layers_of
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
    size = read_sizes(config, KEYS, context=2048)
    for inert in (*SUMMARY, "classifier_dropout"):
        config.raw(inert)
    norm, drop, window = layer_norm(config), config.get("resid_dropout", 0.0), config.size("window_size", 256)
    activation = config.activation("activation_function", "gelu_new")
    mlp = spec.MLP(hidden=size.hidden, activation=activation, gated=False, bias=True)

    def attention(kind: str) -> spec.Attention:
        return spec.Attention(
            heads=size.heads,
            kv_heads=size.heads,
            head_dim=size.head_dim,
            pattern=spec.Pattern(window=window if kind == "local" else None),
            out_bias=True,
            scale=1.0,
            dropout=config.get("attention_dropout", 0.0),
        )

    blocks = tuple(block(attention(kind), mlp, norm, dropout=drop) for kind in kinds(config, size.layers))
    positions = spec.Learned(count=size.context or 2048)
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, positions=positions, dropout=config.get("embed_dropout", 0.0)),
        stack=spec.Stack(dim=size.dim, blocks=blocks, final_norm=norm),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attentions, mlp = layers_of(model.stack, spec.Attention), layers_of(model.stack, spec.MLP)[0]
    if model.embed.positions is None:
        raise CannotSay("it needs learned positions")
    found = [layer.pattern.window for layer in attentions]
    return write_sizes(model, KEYS) | {
        "attention_types": [[["global" if window is None else "local" for window in found], 1]],
        "window_size": next((window for window in found if window is not None), 256),
        "activation_function": spell_activation(mlp.activation),
        "layer_norm_epsilon": norm_of(model).eps,
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
    names=lambda model: NAMES + head_names(model),
    heads=heads_of("GPTNeo"),
    prefix="transformer.",
    ignore=(r".*attention\.(bias|masked_bias)",),
    sizes=KEYS,
)
