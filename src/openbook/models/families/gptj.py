"""GPT-J (Wang & Komatsuzaki 2021): branches side by side after one norm, neighbours turned in a part of each head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError
from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family
from openbook.models.names import Name
from openbook.models.parts import block_names
from openbook.nn import spec

TABLE = classic.gpt_table(("activation_function", "gelu_new"), 0.0)


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, classic.GPT, context=2048), fields.read(config, TABLE)
    for key in ("rotary", "scale_attn_weights"):
        config.fixed(key, True, True)
    config.inert(*classic.SUMMARY)
    turned = config.size("rotary_dim", 64)
    if turned % 2 or turned > size.head_dim:
        raise ConfigError(f"`rotary_dim` must be even and at most {size.head_dim}: got {turned} ({config.where}).")
    attention = replace(size.attention, rope=spec.Rope(dim=turned, neighbours=True), **said[spec.Attention])
    return classic.plain(size, attention, said, "shared")


def from_spec(model: spec.Model) -> dict[str, Any]:
    rope = fields.first(model, spec.Attention).rope
    if rope is None:
        raise CannotSay("it needs rotary positions")
    own = {"rotary_dim": rope.dim, "tie_word_embeddings": model.language is not None and model.language.tied}
    return classic.write_sizes(model, classic.GPT) | fields.write(model, TABLE) | own


H = "transformer.h.{i}."
BODY = (
    Name("transformer.wte", "embed.tokens"),
    Name("transformer.ln_f", "stack.final_norm"),
    *block_names(H, norm="ln_1", out="attn.out_proj", up="mlp.fc_in", down="mlp.fc_out"),
)
APART = block_names(f"{H}attn.", q="q_proj", k="k_proj", v="v_proj")
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
