"""GPT-J (Wang & Komatsuzaki 2021): branches side by side after one norm, neighbours turned in a part of each head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, layers_of
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    size, rates = classic.read_sizes(config, classic.GPT, context=2048), classic.read_rates(config, 0.0)
    for key in ("rotary", "scale_attn_weights"):
        config.fixed(key, True, True)
    for inert in classic.SUMMARY:
        config.raw(inert)
    turned, norm = config.size("rotary_dim", 64), classic.layer_norm(config)
    if turned % 2 or turned > size.head_dim:
        raise ConfigError(f"`rotary_dim` must be even and at most {size.head_dim}: got {turned} ({config.where}).")
    attention = replace(size.attention, rope=spec.Rope(dim=turned, neighbours=True), dropout=rates.attention)
    mlp = size.mlp(config.activation("activation_function", "gelu_new"))
    return size.model(classic.block(attention, mlp, norm, "shared", rates.residual), norm, size.embed(rates.embed))


def from_spec(model: spec.Model) -> dict[str, Any]:
    rope = layers_of(model.stack, spec.Attention)[0].rope
    if rope is None:
        raise CannotSay("it needs rotary positions")
    tied = model.language is not None and model.language.tied
    return classic.write_gpt(model) | {"rotary_dim": rope.dim, "tie_word_embeddings": tied}


H = "transformer.h.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.ln_f", "stack.final_norm"),
    Name(f"{H}ln_1", "stack.blocks.{i}.norm"),
    Name(f"{H}attn.out_proj", f"{BLOCK}.0.layer.out"),
    Name(f"{H}mlp.fc_in", f"{BLOCK}.1.layer.up"),
    Name(f"{H}mlp.fc_out", f"{BLOCK}.1.layer.down"),
)
APART = tuple(Name(f"{H}attn.{n}_proj", f"{BLOCK}.0.layer.{n}") for n in "qkv")
FAMILY = Family(
    model_type="gptj",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: BODY + APART + classic.head_names(model),
    heads=classic.heads_of("GPTJ", classic.biased_language, tokens=False),
    prefix="transformer.",
    ignore=(r".*attn\.(bias|masked_bias)",),
    sizes=classic.GPT,
)
