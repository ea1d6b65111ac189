"""Granite with experts (IBM 2024): Mixtral's routing; embedding, residual steps, scores and logits scaled."""

from __future__ import annotations

from typing import Any

from openbook.models.config import Config
from openbook.models.experts import mixture_of
from openbook.models.family import CannotSay, Family, Heads, layers_of, none
from openbook.models.names import Name
from openbook.models.parts import BASE, BLOCK, IGNORE, PRE_NORMS, attention_of, decoder, read_shape, write_decoder
from openbook.nn import spec


def to_spec(config: Config) -> spec.Model:
    shape = read_shape(config, context=2048)
    bias, scale = config.get("attention_bias", False), config.positive("attention_multiplier", 1.0)
    attention = attention_of(config, shape, None, bias=bias, out_bias=bias, scale=scale)
    moe = spec.MoE(
        experts=config.size("num_local_experts", 8),
        top_k=config.size("num_experts_per_tok", 2),
        expert=spec.MLP(hidden=shape.hidden, activation=config.activation("hidden_act", "silu")),
        balance=config.get("router_aux_loss_coef", 0.001),
    )
    norm = spec.Norm(eps=config.get("rms_norm_eps", 1e-6))
    embed = spec.Embed(vocab=shape.vocab, dim=shape.dim, scale=config.get("embedding_multiplier", 1.0))
    step = config.get("residual_multiplier", 1.0)
    return decoder(shape, norm, lambda _: attention, moe, embed=embed, scale=step)


def from_spec(model: spec.Model) -> dict[str, Any]:
    moe, attention = mixture_of(model), layers_of(model.stack, spec.Attention)[0]
    if attention.scale is None:
        raise CannotSay("its scores are scaled by the size of a head")
    return write_decoder(model) | {
        "attention_bias": attention.bias,
        "attention_multiplier": attention.scale,
        "embedding_multiplier": model.embed.scale,
        "residual_multiplier": model.stack.blocks[0].branches[0].scale,
        "logits_scaling": 1.0 if model.language is None else 1 / model.language.scale,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance,
    }


def language(config: Config) -> Heads:
    """Logits are divided by `logits_scaling`."""
    tied = config.get("tie_word_embeddings", False)
    return (spec.Language(tied=tied, scale=1 / config.positive("logits_scaling", 1.0)),)


THEIRS, OURS = "model.layers.{i}.block_sparse_moe", f"{BLOCK}.1.layer"
EXPERTS = (
    Name(f"{THEIRS}.router.layer", f"{OURS}.router"),
    *(
        Name(f"{THEIRS}.input_linear.weight", f"{OURS}.experts.{part}", part=(n, 2), stacked=True)
        for n, part in enumerate(("gate", "up"))
    ),
    Name(f"{THEIRS}.output_linear.weight", f"{OURS}.experts.down"),
)

FAMILY = Family(
    model_type="granitemoe",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: BASE + PRE_NORMS + EXPERTS,
    heads={"GraniteMoeForCausalLM": language, "GraniteMoeModel": none},
    prefix="model.",
    ignore=IGNORE,
)
