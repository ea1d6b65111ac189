"""An adapter's folder as PEFT writes it: adapter_config.json and adapter_model.safetensors (Hu et al. 2022, LoRA).

`read` gives a value, checked as far as that goes without a model. Untrusted input: nothing is unpickled, patterns that
could run for ever are refused, and what would compute something else than what is done here is an error by its name.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openbook.errors import CheckpointError, ConfigError, OpenbookWarning, Refusal, nearest
from openbook.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
BIASES = ("none", "all", "lora_only")
ALL_LINEAR = "all-linear"
# What says nothing about what the adapter computes once it is trained.
INERT = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out"),
    *("inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
}
# What computes something that is not done here: refused unless it is empty.
REFUSED = {
    "modules_to_save": "whole modules trained beside the adapter",
    "target_parameters": "adapters of bare parameters",
    "trainable_token_indices": "retrained token embeddings",
    "layer_replication": "a base with layers repeated",
    "alora_invocation_tokens": "adapters that start at a token",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal adapters",
    "arrow_config": "routing between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron's parallel layers",
}
READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "bias", "use_dora", "lora_bias"),
    "init_lora_weights",
}
# Ways to begin that train against a changed base.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
LONGEST, MOST_REPEATS = 2000, 5  # of a pattern


@dataclass(frozen=True)
class Settings:
    """What adapter_config.json says. Ranks and alphas of single modules are patterns over their published names."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    root_scaled: bool = False  # alpha / √rank (Kalajdzievski 2023) in place of alpha / rank
    bias: str = "none"
    lora_bias: bool = False
    dora: bool = False  # Liu et al. 2024

    def rank_of(self, module: str) -> int:
        """The rank R at a module, by its published name."""
        return self.ranks.get(_pattern_of(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What the low-rank product is multiplied by."""
        alpha, rank = self.alphas.get(_pattern_of(self.alphas, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.root_scaled else rank)

    def targeted(self, module: str) -> bool:
        """Whether a linear module is adapted, by its published name."""
        if _named(self.excluded, module):
            return False
        if isinstance(self.targets, str):
            return self.targets == ALL_LINEAR or _named(self.targets, module)
        if module in self.targets:
            return True
        return _named(self.targets, module) and (self.layers is None or self._layer(module) in self.layers)

    def _layer(self, module: str) -> int | None:
        patterns = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\.", module) for pattern in patterns)
        return next((int(match[1]) for match in found if match), None)


@dataclass(frozen=True)
class Adapter:
    """An adapter without a name: its settings, and its tensors by published name (without PEFT's own prefix)."""

    folder: str
    settings: Settings
    tensors: Mapping[str, Tensor]


def read(folder: str | Path) -> Adapter:
    """The adapter of a folder. Raises ConfigError, CheckpointError, or Refusal for what cannot be done here."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no adapter folder '{folder}'.")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"'{folder}' has no {CONFIG}: it is no adapter folder, or its copy was interrupted.")
    settings = settings_of(read_json(folder / CONFIG), f"'{folder / CONFIG}'")
    return Adapter(str(folder), settings, _tensors(folder))


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = f" It has {others[0]}, a pickle, which can execute code: convert it to safetensors." if others else ""
        raise CheckpointError(f"'{folder}' has no {WEIGHTS}.{hint}")
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' is damaged or cut short ({error}). Fetch it again.") from error
    if not tensors:
        raise CheckpointError(f"'{path}' holds no tensors.")
    return {_plain(name, path): _usable(name, tensor, path) for name, tensor in tensors.items()}


def _plain(name: str, path: Path) -> str:
    if not name.startswith(ROOT):
        raise CheckpointError(f"Tensor '{name}' in '{path}' does not start with '{ROOT}', as a PEFT adapter's do.")
    return name.removeprefix(ROOT)


def _usable(name: str, tensor: Tensor, path: Path) -> Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise CheckpointError(f"Tensor '{name}' in '{path}' is {tensor.dtype}: an adapter's are 16- or 32-bit floats.")
    wide = tensor.to(torch.float32, copy=True)  # no page of the mapped file stays
    if not torch.isfinite(wide).all():
        raise CheckpointError(f"Tensor '{name}' in '{path}' holds NaN or infinity.")
    return wide


# ---------------------------------------------------------------------------------------------- adapter_config.json


def settings_of(data: object, where: str = CONFIG) -> Settings:
    """The settings that an adapter_config.json says; keys that mean nothing here are a warning."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must hold a JSON object: got {type(data).__name__}.")
    if data.get("peft_type") != "LORA":
        raise Refusal(f"{where} is of the kind {data.get('peft_type')!r}: only 'LORA' adapters can be used here.")
    for key, what in REFUSED.items():
        if data.get(key):
            raise Refusal(f"{where} asks for {what} (`{key}`), which is not done here. Train the adapter without it.")
    begun = str(data.get("init_lora_weights")).lower()
    if begun.startswith(CHANGED_BASE):
        raise Refusal(
            f"{where} was begun with '{begun}', which changes the base model itself: convert it to a plain LoRA "
            "adapter when saving (PEFT: path_initial_model_for_weight_conversion)."
        )
    if unknown := sorted(set(data) - READ - INERT - set(REFUSED)):
        hint = nearest(unknown[0], READ)
        warnings.warn(
            f"{where}: nothing is known of `{unknown[0]}`, it is ignored.{hint}", OpenbookWarning, stacklevel=3
        )
    reader = _Reader(data, where)
    settings = Settings(
        rank=reader.rank("r", data.get("r", 8)),
        alpha=reader.number("lora_alpha", data.get("lora_alpha", 8)),
        targets=reader.modules("target_modules"),
        excluded=reader.modules("exclude_modules", empty=True),
        layers=reader.layers(),
        layers_pattern=reader.patterns("layers_pattern"),
        ranks={
            reader.pattern("rank_pattern", k): reader.rank("rank_pattern", v) for k, v in reader.table("rank_pattern")
        },
        alphas={
            reader.pattern("alpha_pattern", k): reader.number("alpha_pattern", v)
            for k, v in reader.table("alpha_pattern")
        },
        root_scaled=reader.flag("use_rslora"),
        bias=reader.bias(),
        lora_bias=reader.flag("lora_bias"),
        dora=reader.flag("use_dora"),
    )
    if settings.dora and settings.lora_bias:
        raise Refusal(f"{where}: `use_dora` together with `lora_bias` is not done here.")
    return settings


class _Reader:
    """Reads the keys of one adapter_config.json, each wrong value an error that names it."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def wrong(self, key: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"`{key}` must be {allowed}: got {value!r} ({self.where}).")

    def rank(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
            raise self.wrong(key, value, "a whole number of at least 1")
        return value

    def number(self, key: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.data.get(key) or False
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def bias(self) -> str:
        value = self.data.get("bias") or "none"
        if value not in BIASES:
            raise self.wrong("bias", value, ", ".join(repr(b) for b in BIASES))
        return str(value)

    def table(self, key: str) -> list[tuple[str, object]]:
        value = self.data.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object of patterns")
        return [(self.pattern(key, text), one) for text, one in value.items()]

    def layers(self) -> tuple[int, ...] | None:
        value = self.data.get("layers_to_transform")
        if value is None or value == []:
            return None
        numbers = value if isinstance(value, list) else [value]
        if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in numbers):
            raise self.wrong("layers_to_transform", value, "numbers of layers")
        return tuple(numbers)

    def modules(self, key: str, empty: bool = False) -> str | tuple[str, ...]:
        value = self.data.get(key)
        if not value and empty:
            return ()
        if isinstance(value, str) and value:
            return value if value == ALL_LINEAR else self.pattern(key, value)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, value, "a list of module names, a pattern, or 'all-linear'")
        return tuple(value)

    def patterns(self, key: str) -> tuple[str, ...]:
        value = self.data.get(key) or []
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise self.wrong(key, value, "a pattern or a list of them")
        return tuple(self.pattern(key, one) for one in listed)

    def pattern(self, key: str, text: str) -> str:
        """A regular expression that ends in time: no repeated groups, few repeats, no great length."""
        plain = re.sub(r"\\.|\[[^\]]*\]", "x", text)
        if len(text) > LONGEST or re.search(r"\)\s*[*+{]", plain) or len(re.findall(r"[*+{]", plain)) > MOST_REPEATS:
            raise Refusal(
                f"`{key}` holds a pattern that could take for ever: {text[:80]!r} ({self.where}). "
                f"At most {MOST_REPEATS} repeats, none of a group, in {LONGEST} characters; or list the module names."
            )
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"`{key}` is no regular expression: {text[:80]!r}, {error} ({self.where}).") from error
        return text


def _named(modules: str | tuple[str, ...], module: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return module in modules or any(module.endswith(f".{one}") for one in modules)


def _pattern_of(patterns: Mapping[str, object], module: str) -> str:
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
