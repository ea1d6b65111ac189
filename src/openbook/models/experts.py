"""What the families with experts share: which layers are sparse, keys of config.json, names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openbook.errors import ConfigError
from openbook.models.config import Config
from openbook.models.family import CannotSay, branches_of, layers_of
from openbook.models.fields import Fields
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

USUAL = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def chosen(experts: int, top_k: int, key: str = "num_local_experts", balance: float = 0.001) -> Fields:
    """How many experts there are (under `key`), how many a token has, and how even their load is made: defaults."""
    return {
        "experts": (key, experts),
        "top_k": ("num_experts_per_tok", top_k),
        "balance": ("router_aux_loss_coef", balance),
    }


def expert_names(
    theirs: str,
    router: str = "gate",
    expert: str = "experts.{e}",
    matrices: Mapping[str, str] = USUAL,
    shared: str = "shared_expert",
) -> tuple[Name, ...]:
    """Names of a mixture in the second branch of each block, published under `theirs`, one tensor for each expert."""
    ours = f"{BLOCK}.1.layer"
    return (
        Name(f"{theirs}.{router}", f"{ours}.router"),
        Name(f"{theirs}.{router}.e_score_correction_bias", f"{ours}.correction"),
        *(Name(f"{theirs}.{expert}.{name}.weight", f"{ours}.experts.{part}") for part, name in matrices.items()),
        *(Name(f"{theirs}.{shared}.{name}", f"{ours}.shared.{part}") for part, name in matrices.items()),
        Name(f"{theirs}.{shared}_gate", f"{ours}.shared_gate"),
    )


def sparse_layers(config: Config, layers: int) -> list[bool]:
    """Which blocks have experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    step, dense = config.size("decoder_sparse_step", 1), config.raw("mlp_only_layers", [])
    if not isinstance(dense, list) or not all(isinstance(number, int) for number in dense):
        raise ConfigError(f"`mlp_only_layers` must list numbers of layers: got {dense!r} ({config.where}).")
    return [(number + 1) % step == 0 and number not in dense for number in range(layers)]


def write_sparse(model: spec.Model) -> dict[str, Any]:
    """The keys that `sparse_layers` reads, and the hidden sizes of both kinds of layer."""
    ffns = [block.branches[-1].layer for block in model.stack.blocks]
    dense = [number for number, layer in enumerate(ffns) if not isinstance(layer, spec.MoE)]
    hidden = [layer.hidden for layer in ffns if isinstance(layer, spec.MLP)]
    moe = mixture_of(model)
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "intermediate_size": hidden[0] if hidden else moe.expert.hidden,
        "moe_intermediate_size": moe.expert.hidden,
    }


def mixture_of(model: spec.Model) -> spec.MoE:
    """The experts of a model; none is more than these families can say."""
    layers_of(model.stack, spec.Attention)
    found = [branch.layer for branch in branches_of(model.stack) if isinstance(branch.layer, spec.MoE)]
    if not found:
        raise CannotSay("it has no experts")
    return found[0]
