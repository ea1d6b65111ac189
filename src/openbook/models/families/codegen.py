"""CodeGen (Nijkamp et al. 2022): GPT-J with q, v and k in one matrix, as four machines held it in training."""

from __future__ import annotations

from openbook.errors import ConfigError
from openbook.models import classic
from openbook.models.config import Config
from openbook.models.families import gptj
from openbook.models.family import Family, none
from openbook.models.names import fused
from openbook.nn import spec

MACHINES = 4
FUSED = fused("transformer.h.{i}.attn.qkv_proj", (classic.QKV[0], classic.QKV[2], classic.QKV[1]), (1, 1, 1), MACHINES)


def to_spec(config: Config) -> spec.Model:
    if config.size("n_head") % MACHINES:
        raise ConfigError(f"`n_head` must be a multiple of {MACHINES}: got {config.size('n_head')} ({config.where}).")
    return gptj.to_spec(config)


FAMILY = Family(
    model_type="codegen",
    to_spec=to_spec,
    from_spec=gptj.from_spec,
    names=lambda model: gptj.BODY + FUSED + classic.head_names(model),
    heads={"CodeGenForCausalLM": classic.biased_language, "CodeGenModel": none},
    prefix="transformer.",
    ignore=(r".*attn\.causal_mask",),
    sizes=classic.GPT,
)
