"""Mamba 1 (Gu & Dao 2023): one selective state space in every block, no attention, no positions."""

from __future__ import annotations

from typing import Any

from openbook.models import fields
from openbook.models.classic import tied_language
from openbook.models.config import Config
from openbook.models.family import SIZES, Family, none
from openbook.models.hybrids import read_states, state_rank, widened, write_states
from openbook.models.names import Name
from openbook.models.parts import BLOCK
from openbook.nn import spec

# How the first weights are drawn, which kernels run, and the words of the first implementation.
INERT = (
    *("residual_in_fp32", "rescale_prenorm_residual", "use_mambapy", "use_associative_scan", "time_step_scale"),
    *("time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor", "d_inner", "d_model", "n_layer"),
    *("ssm_cfg", "rms_norm", "fused_add_norm", "pad_vocab_size_multiple"),
)
LAYER: fields.Fields = {
    "state": ("state_size", 16),
    "kernel": ("conv_kernel", 4),
    "activation": ("hidden_act", "silu"),
    "bias": ("use_bias", False),
    "conv_bias": ("use_conv_bias", True),
}


def to_spec(config: Config) -> spec.Model:
    dim = config.size("hidden_size")
    inner, rank = config.size("intermediate_size", widened(config, dim)), state_rank(config, "time_step_rank", dim)
    config.inert(*INERT)
    return read_states(config, spec.Selective(inner=inner, rank=rank, **fields.take(config, LAYER)), dim)


def from_spec(model: spec.Model) -> dict[str, Any]:
    layer = fields.first(model, spec.Selective)
    own = {"intermediate_size": layer.inner, "time_step_rank": layer.rank}
    return write_states(model, layer.inner) | fields.say(layer, LAYER) | own


M, OURS = "backbone.layers.{i}.mixer.", f"{BLOCK}.0.layer."
SHARED = (  # with Mamba 2
    Name("backbone.embeddings", "embed.tokens"),
    Name("backbone.norm_f", "stack.final_norm"),
    Name("lm_head", "heads.language"),
    Name("backbone.layers.{i}.norm", f"{BLOCK}.0.norm"),
    Name(f"{M}in_proj", f"{OURS}project"),
    Name(f"{M}conv1d.weight", f"{OURS}conv", insert=1),
    Name(f"{M}conv1d.bias", f"{OURS}conv_bias"),
    Name(f"{M}A_log", f"{OURS}log_decay"),
    Name(f"{M}D", f"{OURS}skip"),
    Name(f"{M}out_proj", f"{OURS}out"),
)
NAMES = (*SHARED, Name(f"{M}x_proj", f"{OURS}select"), Name(f"{M}dt_proj", f"{OURS}step"))
FAMILY = Family(
    model_type="mamba",
    to_spec=to_spec,
    from_spec=from_spec,
    names=lambda _: NAMES,
    heads={"MambaForCausalLM": tied_language, "MambaModel": none},
    prefix="backbone.",
    sizes={word: SIZES[word] for word in ("vocab", "dim", "layers", "hidden", "tied")},
)
