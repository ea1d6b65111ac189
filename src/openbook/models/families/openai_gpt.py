"""GPT-1 (Radford et al. 2018): learned positions, norms after each step, one matrix for q, k and v stored [in,out]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError, nearest
from openbook.models import classic
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, classes_of_last, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {word: key for word, key in classic.GPT.items() if word != "hidden"}
# Its own names: `gelu` is the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def to_spec(config: Config) -> spec.Model:
    size, rates = classic.read_sizes(config, KEYS, context=512), classic.read_rates(config, 0.1)
    for inert in ("predict_special_tokens", "n_special", *classic.SUMMARY):
        config.raw(inert)
    name = config.get("afn", "gelu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation '{name}' (`afn` in {config.where}).{nearest(name, ACTIVATIONS)}")
    attention = replace(size.attention, bias=True, out_bias=True, dropout=rates.attention)
    norm = classic.layer_norm(config)
    block = classic.block(attention, size.mlp(ACTIVATIONS[name]), norm, "post", rates.residual)
    return size.model(block, None, size.embed(rates.embed, learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    activation = layers_of(model.stack, spec.MLP)[0].activation
    spelled = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == activation), None)
    if spelled is None or classic.way_of(model) != "post":
        raise CannotSay(f"it needs norms after each step, and an activation of {', '.join(ACTIVATIONS)}")
    said = classic.write_gpt(model, KEYS) | {"afn": spelled}
    return {key: value for key, value in said.items() if key != "activation_function"}


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.tokens_embed", "embed.tokens"),
    Name("transformer.positions_embed", "embed.positions"),
    *(Name(f"{H}attn.c_attn", own, transpose=True, part=(k, 3)) for k, own in enumerate(classic.QKV)),
    Name(f"{H}attn.c_proj", f"{BLOCK}.0.layer.out", transpose=True),
    Name(f"{H}ln_1", f"{BLOCK}.0.norm"),
    Name(f"{H}mlp.c_fc", f"{BLOCK}.1.layer.up", transpose=True),
    Name(f"{H}mlp.c_proj", f"{BLOCK}.1.layer.down", transpose=True),
    Name(f"{H}ln_2", f"{BLOCK}.1.norm"),
)
FAMILY = Family(
    model_type="openai-gpt",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda model: NAMES + classic.head_names(model),
    heads={
        "OpenAIGPTLMHeadModel": classic.tied_language,
        "OpenAIGPTModel": none,
        "OpenAIGPTForSequenceClassification": classes_of_last,
    },
    prefix="transformer.",
    ignore=(r".*attn\.bias", r".*position_ids"),
    sizes=KEYS,
)
