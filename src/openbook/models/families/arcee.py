"""Arcee AFM (2025): a Llama with a plain feed-forward layer of squared relus (So et al. 2021)."""

from __future__ import annotations

from openbook.models.config import Config
from openbook.models.families.llama import from_spec as from_llama
from openbook.models.family import Family
from openbook.models.modern import attention, biased, decoder_heads, mlp, rms, write
from openbook.models.parts import BASE, GATED, IGNORE, PRE_NORMS, decoder, read_shape
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=4096)
    layer = attention(config, shape, **biased(config))
    ffn = mlp(config, shape, "relu2", gated=False, bias=config.get("mlp_bias", False))
    return decoder(shape, rms(config, 1e-5), lambda _: layer, ffn)


FAMILY = Family(
    model_type="arcee",
    to_spec=to_spec,
    from_spec=lambda model: write(model) | from_llama(model),
    names=lambda _: BASE + PRE_NORMS + GATED,
    heads=decoder_heads("Arcee"),
    prefix="model.",
    ignore=IGNORE,
)
