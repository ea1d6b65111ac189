"""GPT-1 (Radford et al. 2018): learned positions, norms after each step, one matrix for q, k and v stored [in,out]."""

from __future__ import annotations

from typing import Any

from openbook.errors import ConfigError, nearest
from openbook.models.classic import (
    GPT,
    QKV,
    SUMMARY,
    block,
    head_names,
    layer_norm,
    norm_of,
    read_sizes,
    tied_language,
    way_of,
    write_sizes,
)
from openbook.models.config import Config
from openbook.models.family import CannotSay, Family, branches_of, classes_of_last, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

KEYS = {word: key for word, key in GPT.items() if word != "hidden"}
# Its own names: `gelu` is the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
INERT = ("predict_special_tokens", "n_special", *SUMMARY)


def to_spec(config: Config) -> spec.Model:
    size = read_sizes(config, KEYS, context=512)
    for inert in INERT:
        config.raw(inert)
    name = config.get("afn", "gelu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation '{name}' (`afn` in {config.where}).{nearest(name, ACTIVATIONS)}")
    attention = spec.Attention(
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        bias=True,
        out_bias=True,
        dropout=config.get("attn_pdrop", 0.1),
    )
    mlp = spec.MLP(hidden=size.hidden, activation=ACTIVATIONS[name], gated=False, bias=True)
    one = block(attention, mlp, layer_norm(config), "post", config.get("resid_pdrop", 0.1))
    positions, drop = spec.Learned(count=size.context or 512), config.get("embd_pdrop", 0.1)
    return spec.Model(
        embed=spec.Embed(vocab=size.vocab, dim=size.dim, positions=positions, dropout=drop),
        stack=spec.Stack(dim=size.dim, blocks=(one,) * size.layers),
        heads=(),
        context=size.context,
    )


def from_spec(model: spec.Model) -> dict[str, Any]:
    attention, mlp = layers_of(model.stack, spec.Attention)[0], layers_of(model.stack, spec.MLP)[0]
    spelled = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == mlp.activation), None)
    if spelled is None or way_of(model) != "post":
        raise CannotSay(f"it needs norms after each step, and an activation of {', '.join(ACTIVATIONS)}")
    return write_sizes(model, KEYS) | {
        "afn": spelled,
        "layer_norm_epsilon": norm_of(model).eps,
        "resid_pdrop": branches_of(model.stack)[0].dropout,
        "embd_pdrop": model.embed.dropout,
        "attn_pdrop": attention.dropout,
    }


H = "transformer.h.{i}."
NAMES = (
    Name("transformer.tokens_embed", "embed.tokens"),
    Name("transformer.positions_embed", "embed.positions"),
    *(Name(f"{H}attn.c_attn", own, transpose=True, part=(k, 3)) for k, own in enumerate(QKV)),
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
    names=lambda model: NAMES + head_names(model),
    heads={
        "OpenAIGPTLMHeadModel": tied_language,
        "OpenAIGPTModel": none,
        "OpenAIGPTForSequenceClassification": classes_of_last,
    },
    prefix="transformer.",
    ignore=(r".*attn\.bias", r".*position_ids"),
    sizes=KEYS,
)
