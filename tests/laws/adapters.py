"""Adapters for the laws: made by the reference library over tiny random models, every matrix away from its start."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.families import ALL, Case

CASES = {case.name: case for case in ALL}


@dataclass(frozen=True)
class Kind:
    """One adapter over one case."""

    name: str
    case: str
    settings: dict[str, Any] = field(hash=False)
    seed: int = 0

    @property
    def base(self) -> Case:
        return CASES[self.case]

    def reference(self) -> Any:
        """The reference library's model with this adapter."""
        import peft

        base = copy.deepcopy(self.base.reference())  # before the seed: the first time it draws numbers itself
        torch.manual_seed(self.seed + 17)
        settings = {"r": 4, "lora_alpha": 6, **self.settings}
        model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
                elif parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def folder(self, root: Path) -> Path:
        """The adapter saved as a folder."""
        folder = root / f"adapter-{self.name}"
        if not (folder / "adapter_config.json").exists():
            self.reference().save_pretrained(folder)
        return folder


QV = ["q_proj", "v_proj"]
ALL_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = [
    Kind("llama", "llama", {"target_modules": QV}),
    Kind("llama-all-rs", "llama", {"target_modules": "all-linear", "use_rslora": True, "r": 7}),
    Kind(
        "llama-patterns",
        "llama",
        {
            "target_modules": ALL_MAPS,
            "exclude_modules": ["o_proj"],
            "layers_to_transform": [0, 2],
            "layers_pattern": "layers",
            "rank_pattern": {"q_proj": 2, r"layers\.2\.mlp\.up_proj": 5},
            "alpha_pattern": {"up_proj": 3, "k_proj": 11},
        },
    ),
    Kind("llama-regex", "llama", {"target_modules": r".*\.[02]\.(self_attn|mlp)\.(q|up|down)_proj"}),
    Kind("llama-bias", "llama-biased-mqa", {"target_modules": ALL_MAPS, "bias": "lora_only"}),
    Kind("llama-lora-bias", "llama-biased-mqa", {"target_modules": ["k_proj", "down_proj"], "lora_bias": True}),
    Kind("llama-dora", "llama-biased-mqa", {"target_modules": ALL_MAPS, "use_dora": True, "bias": "all"}),
    Kind("gpt2", "gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    Kind("gpt2-dora-bias", "gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "bias": "all"}),
    Kind("gpt2-bare", "gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 1}),
    Kind("qwen2", "qwen2", {"target_modules": ALL_MAPS, "bias": "all"}),
    Kind("gemma2", "gemma2", {"target_modules": ALL_MAPS}),
    Kind("mixtral", "mixtral", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    Kind("mamba", "mamba", {"target_modules": ["in_proj", "x_proj"]}),
    Kind(
        "latent",
        "deepseek3-dense",
        {"target_modules": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"], "use_dora": True},
    ),
    Kind("t5", "t5", {"target_modules": ["q", "k", "v", "o", "wi", "wo"]}),
    Kind("head by head", "gpt_neox", {"target_modules": ["query_key_value", "dense"], "use_dora": True, "bias": "all"}),
    Kind("group by group", "falcon-new", {"target_modules": ["query_key_value", "dense_4h_to_h"]}),
    Kind("unequal", "gpt_bigcode", {"target_modules": ["c_attn"], "lora_bias": True}),
    Kind(
        "q, k and v, gate and up", "phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "use_dora": True}
    ),
    Kind("gate and up", "glm", {"target_modules": ["gate_up_proj", "q_proj"], "bias": "all"}),
    Kind("narrow", "opt-narrow", {"target_modules": "all-linear", "bias": "lora_only"}),
    Kind("bert", "bert", {"target_modules": ["query", "value"]}),
]
