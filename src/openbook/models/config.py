"""Reading a `config.json`: every key is used, known to be inert, or reported.

Unknown keys warn; unknown values of keys that compute (rope type, activation) fail. Old and new spellings of rotary
scaling are both read: `rope_theta` with `rope_scaling`, and `rope_parameters` (flat, or one for each kind of layer).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from openbook.errors import ConfigError, OpenbookWarning, nearest
from openbook.nn import spec

T = TypeVar("T", int, float, bool, str, dict[str, Any])

# Keys that change nothing in what a model computes: kept as they are, and written again.
INERT = frozenset(
    (
        "model_type",
        "architectures",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "use_cache",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "unk_token_id",
        "mask_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "initializer_range",
        "initializer_factor",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_past",
        "return_dict",
        "return_dict_in_generate",
        "torchscript",
        "tokenizer_class",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "finetuning_task",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "cache_implementation",
        "pretraining_tp",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "use_bfloat16",
        "unsloth_version",
        "unsloth_fixed",
        "task_specific_params",
        "gradient_checkpointing",
        "language",
        "tie_encoder_decoder",
        "pruned_heads",
        "prefix",
    )
)

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
_SPELLED = {ours: theirs for theirs, ours in reversed(ACTIVATION_NAMES.items())} | {
    "gelu_tanh": "gelu_pytorch_tanh",
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
LIMITS = {"layers": 10_000, "size": 2**31 - 1}


class Config:
    """A `config.json` that remembers which of its keys were read. `where` names it in messages."""

    def __init__(self, data: Mapping[str, Any], where: str = "config.json") -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where} must hold a JSON object: got {type(data).__name__}.")
        self.data = dict(data)
        self.where = where
        self.read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.data.get(key) is not None

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent."""
        self.read.add(key)
        value = self.data.get(key)
        return default if value is None else value

    @overload
    def get(self, key: str, default: T) -> T: ...
    @overload
    def get(self, key: str, default: None, kind: type[T]) -> T | None: ...

    def get(self, key: str, default: Any, kind: Any = None) -> Any:
        """The value, of the default's type (or `kind`); null counts as absent."""
        value = self.raw(key)
        return default if value is None else self._checked(key, value, kind or type(default))

    def size(self, key: str, default: int | None = None, most: int = LIMITS["size"]) -> int:
        """A whole number of at least 1; without a default the key must be there."""
        value = self.raw(key, default)
        if value is None:
            raise ConfigError(f"`{key}` is missing in {self.where}.{nearest(key, self.data)}")
        number: int = self._checked(key, value, int)
        if not 1 <= number <= most:
            raise ConfigError(f"`{key}` must be 1 to {most:,}: got {number} ({self.where}).")
        return number

    def layers(self, key: str, default: int | None = None) -> int:
        """A number of layers: a size with a sane bound."""
        return self.size(key, default, LIMITS["layers"])

    def activation(self, key: str, default: str) -> str:
        """Our name of the activation; an unknown one is an error."""
        return self.activation_named(self.get(key, default), key)

    def activation_named(self, name: str, key: str) -> str:
        """Our name for the published `name`, found under `key`."""
        if name not in ACTIVATION_NAMES:
            hint = nearest(name, ACTIVATION_NAMES)
            raise ConfigError(f"Unknown activation '{name}' (`{key}` in {self.where}).{hint}")
        return ACTIVATION_NAMES[name]

    def positive(self, key: str, default: float, most: float = math.inf) -> float:
        """A number above 0."""
        number = self.get(key, default)
        if not 0 < number <= most:
            raise ConfigError(f"`{key}` must be above 0 and at most {most:g}: got {number:g} ({self.where}).")
        return number

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers, which must be there."""
        found = self.raw(key)
        if not isinstance(found, list) or not found:
            raise ConfigError(f"`{key}` must be a list of numbers: got {found!r} ({self.where}).")
        return tuple(self._checked(key, value, float) for value in found)

    def fixed(self, key: str, allowed: Any, default: Any) -> None:
        """A key that computes but of which one value alone is known."""
        value = self.raw(key, default)
        if value != allowed:
            raise ConfigError(f"`{key}` = {value!r} in {self.where} is not known here; only {allowed!r} is.")

    def spelled(self, *keys: str) -> str:
        """Which of several spellings of one key is there, else the first; all count as read."""
        self.read.update(keys)
        return next((key for key in keys if self.has(key)), keys[0])

    def inert(self, *keys: str) -> None:
        """Keys that this family knows and that change nothing in what it computes."""
        self.read.update(keys)

    def unread(self) -> list[str]:
        """Keys that nothing read and that are not inert."""
        return sorted(key for key in set(self.data) - self.read - INERT if not key.startswith("_"))

    def warn_unread(self) -> None:
        """Say which keys have no effect."""
        if keys := self.unread():
            listed = ", ".join(f"`{key}`" for key in keys)
            warnings.warn(f"{self.where}: {listed} not known, no effect.", OpenbookWarning, stacklevel=3)

    def _checked(self, key: str, value: Any, kind: type) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ConfigError(f"`{key}` must be of type {kind.__name__}: got {value!r} ({self.where}).")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"`{key}` must be finite: got {value!r} ({self.where}).")
        return value


def spell_activation(name: str) -> str:
    """The published name of our activation."""
    return _SPELLED[name]


def read_rope(
    config: Config, head_dim: int, context: int, kind: str | None = None, theta: float = 1e4, share: float = 1.0
) -> spec.Rope:
    """The rotary positions of a config; `kind` chooses among several (`full_attention`, `sliding_attention`).

    `theta` is the family's default base, `share` its default part of a head that is turned.
    """
    rules = _rope_rules(config, kind)
    theta = rules.get("rope_theta", config.get("rope_theta", theta))
    share = rules.get("partial_rotary_factor", config.get("partial_rotary_factor", share))
    if not 0 < share <= 1:
        raise ConfigError(f"`partial_rotary_factor` must be above 0 and at most 1: got {share:g} ({config.where}).")
    proportional = rules.raw("rope_type", rules.raw("type")) == "proportional"
    dim = head_dim if proportional else int(head_dim * share)
    if dim < 2 or dim % 2:
        raise ConfigError(f"Rotary positions turn pairs: head_dim={head_dim} gives {dim} features ({config.where}).")
    if theta <= 0:
        raise ConfigError(f"`rope_theta` must be positive: got {theta} ({config.where}).")
    return spec.Rope(dim=dim, theta=theta, scaling=_scaling(config, rules, context, share))


def _rope_rules(config: Config, kind: str | None) -> Config:
    """The table that holds the rotary rules, old or new spelling."""
    name = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    rules = config.raw(name, {})
    config.read |= {"rope_parameters", "rope_scaling"}
    where = f"{name} of {config.where}"
    if isinstance(rules, Mapping) and any(key.endswith("_attention") for key in rules):
        rules, where = rules.get(kind or "full_attention") or {}, f"{kind} in {where}"
    if not isinstance(rules, Mapping):
        raise ConfigError(f"{where} must be an object: got {type(rules).__name__}.")
    return Config(rules, where)


def _scaling(config: Config, rules: Config, context: int, share: float) -> spec.Scaling | None:
    kind = rules.raw("rope_type", rules.raw("type", "default"))
    original = rules.size("original_max_position_embeddings", config.get("original_max_position_embeddings", context))
    scaling: spec.Scaling | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = spec.LinearScaling(factor=_factor(rules))
        case "dynamic":
            scaling = spec.DynamicScaling(factor=_factor(rules), original=context)
        case "yarn" if rules.has("short_factor"):  # as LongRoPE was once called
            scaling = _longrope(rules, original, context)
        case "yarn":
            scaling = _yarn(rules, original, context)
        case "llama3":
            scaling = spec.WavelengthScaling(
                factor=_factor(rules),
                original=original,
                low=rules.get("low_freq_factor", 1.0),
                high=rules.get("high_freq_factor", 4.0),
            )
        case "longrope" | "su":
            scaling = _longrope(rules, original, context)
        case "proportional":
            scaling = spec.ProportionalScaling(share=share, factor=rules.get("factor", 1.0))
        case _:
            raise ConfigError(f"Unknown rope type {kind!r} in {rules.where}.{nearest(str(kind), ROPE_TYPES)}")
    rules.warn_unread()
    return scaling


def _factor(rules: Config) -> float:
    factor = rules.get("factor", None, float)
    if factor is None or factor <= 0:
        raise ConfigError(f"`factor` must be a positive number: got {factor} in {rules.where}.")
    return factor


def _yarn(rules: Config, original: int, context: int) -> spec.YarnScaling:
    factor = _factor(rules) if rules.has("factor") else context / original
    attention = rules.get("attention_factor", None, float)
    top, bottom = rules.get("mscale", 0.0), rules.get("mscale_all_dim", 0.0)
    if attention is None:
        attention = magnitude(factor, top) / magnitude(factor, bottom) if top and bottom else magnitude(factor, 1.0)
    return spec.YarnScaling(
        factor=factor,
        original=original,
        beta_fast=rules.get("beta_fast", 32.0),
        beta_slow=rules.get("beta_slow", 1.0),
        attention=attention,
        truncate=rules.get("truncate", True),
    )


def _longrope(rules: Config, original: int, context: int) -> spec.LongRopeScaling:
    factor = _factor(rules) if rules.has("factor") else context / original
    attention = rules.get("attention_factor", None, float)
    if attention is None:  # Ding et al. 2024 §3.3, as published
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return spec.LongRopeScaling(
        short=rules.numbers("short_factor"), long=rules.numbers("long_factor"), original=original, attention=attention
    )


def magnitude(factor: float, weight: float) -> float:
    """How much longer contexts sharpen attention (Peng et al. 2023, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def share_of(rope: spec.Rope, head_dim: int) -> float:
    """The part of a head's features that is turned, such that it gives `rope.dim` when it is rounded down."""
    share = rope.dim / head_dim
    return share if int(head_dim * share) == rope.dim else math.nextafter(share, 1.0)


def write_rope(rope: spec.Rope, head_dim: int) -> dict[str, Any]:
    """The `rope_parameters` that `read_rope` reads back."""
    rules: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.dim != head_dim:
        rules["partial_rotary_factor"] = share_of(rope, head_dim)
    match rope.scaling:
        case None:
            pass
        case spec.LinearScaling(factor=factor):
            rules |= {"rope_type": "linear", "factor": factor}
        case spec.DynamicScaling(factor=factor):
            rules |= {"rope_type": "dynamic", "factor": factor}
        case spec.YarnScaling() as yarn:
            rules |= {
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "attention_factor": yarn.attention,
                "truncate": yarn.truncate,
            }
        case spec.WavelengthScaling() as rule:
            rules |= {
                "rope_type": "llama3",
                "factor": rule.factor,
                "original_max_position_embeddings": rule.original,
                "low_freq_factor": rule.low,
                "high_freq_factor": rule.high,
            }
        case spec.LongRopeScaling() as rule:
            rules |= {
                "rope_type": "longrope",
                "short_factor": list(rule.short),
                "long_factor": list(rule.long),
                "original_max_position_embeddings": rule.original,
                "attention_factor": rule.attention,
            }
        case spec.ProportionalScaling(share=share, factor=factor):
            rules |= {"rope_type": "proportional", "partial_rotary_factor": share, "factor": factor}
        case spec.NtkScaling():
            pass  # no config.json says it: it shows when it is read back
    return rules
