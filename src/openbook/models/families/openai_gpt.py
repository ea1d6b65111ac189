"""GPT-1 (Radford et al. 2018): learned positions, norms after each step, one matrix for q, k and v stored [in,out]."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openbook.errors import ConfigError, nearest
from openbook.models import classic, fields
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, classes_of_last, none
from openbook.models.names import Name, fused
from openbook.models.parts import block_names
from openbook.nn import spec

KEYS = {word: key for word, key in classic.GPT.items() if word != "hidden"}
TABLE = {kind: rows for kind, rows in classic.gpt_table(("afn", "gelu"), 0.1).items() if kind is not spec.MLP}
# Its own names: `gelu` is the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def to_spec(config: Config) -> spec.Model:
    size, said = classic.read_sizes(config, KEYS, context=512), fields.read(config, TABLE)
    config.inert("predict_special_tokens", "n_special", *classic.SUMMARY)
    name = config.get("afn", "gelu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation '{name}' (`afn` in {config.where}).{nearest(name, ACTIVATIONS)}")
    attention = replace(size.attention, bias=True, out_bias=True, **said[spec.Attention])
    norm = spec.Norm(kind="layer", bias=True, **said[spec.Norm])
    block = classic.block(attention, size.mlp(ACTIVATIONS[name]), norm, "post", **said[spec.Branch])
    return size.model(block, None, size.embed(**said[spec.Embed], learned=True))


def from_spec(model: spec.Model) -> dict[str, Any]:
    activation = fields.first(model, spec.MLP).activation
    spelled = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == activation), None)
    if spelled is None or classic.way_of(model) != "post":
        raise CannotSay(f"it needs norms after each step, and an activation of {', '.join(ACTIVATIONS)}")
    return classic.write_sizes(model, KEYS) | fields.write(model, TABLE) | {"afn": spelled}


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.tokens_embed", "embed.tokens"),
    Name("transformer.positions_embed", "embed.positions"),
    *block_names(H, norm1="ln_1", norm2="ln_2"),
    *fused(f"{H}attn.c_attn", classic.QKV, (1, 1, 1), transpose=True),
    *block_names(H, transpose=True, out="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj"),
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
