"""A new model of a family, from a few sizes in our own words; and the rewrites of a loaded one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from openbook.errors import ConfigError, nearest
from openbook.models.config import Config
from openbook.models.registry import family_of, read
from openbook.nn import spec
from openbook.nn.attention import SelfAttention
from openbook.nn.build import build, check, head_name
from openbook.nn.init import initialise
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import LanguageModel
from openbook.nn.plain import from_plain


def spec_of(
    family: str, sizes: Mapping[str, Any], more: Mapping[str, Any] | None = None, head: str | None = None
) -> spec.Model:
    """The spec of a family with these sizes: vocab, dim, layers, heads, kv_heads, head_dim, hidden, context, tied.

    `more` are keys of the family's config.json. A size that the family does not have is an error. Of the architectures
    that it is published as it is the first, or the first with a `head` of this name. Of "openbook", `more` is the spec
    as plain data (nn/plain.py), and the one size it may leave open is `embed.vocab`.
    """
    found = family_of(family, "the recipe")
    if family == "openbook":
        return _of_its_own(more or {}, sizes.get("vocab"))
    config: dict[str, Any] = {"model_type": family}
    for word, value in sizes.items():
        if value is None:
            continue
        if word not in found.sizes:
            raise ConfigError(f"A '{family}' has no size `{word}`.{nearest(word, found.sizes)}")
        config[found.sizes[word]] = value + found.before if word == "context" else value
    if unknown := [key for key in more or {} if key in config and config[key] != (more or {})[key]]:
        raise ConfigError(f"`{unknown[0]}` is given twice, by its size and by its own name.")
    config |= more or {}
    checked = Config(config, "the recipe")
    found.to_spec(checked)
    named = {name: [head_name(one) for one in heads(checked)] for name, heads in found.heads.items()}
    if wrong := checked.unread():
        raise ConfigError(f"Unknown key `{wrong[0]}` for a '{family}'.{nearest(wrong[0], checked.read)}")
    if head is not None:
        fitting = [name for name, heads in named.items() if head in heads]
        if not fitting:
            raise ConfigError(f"A '{family}' is not published with a head '{head}': it has {named}.")
        config["architectures"] = fitting[:1]
    return read(config, "the recipe")[1]


def _of_its_own(plain: Mapping[str, Any], vocab: int | None) -> spec.Model:
    """A model that a recipe says whole."""
    embed = plain.get("embed")
    if isinstance(embed, Mapping) and vocab is not None:
        own = embed.get("vocab", vocab)
        if isinstance(own, int) and own < vocab:
            raise ConfigError(f"`model.spec.embed.vocab` is {own}, but the tokenizer has {vocab} ids. Leave it out.")
        plain = {**plain, "embed": {**embed, "vocab": own}}
    model: spec.Model = from_plain(plain, spec.Model, "model.spec")
    check(model)
    return model


def make(model: spec.Model, seed: int = 0, device: str | torch.device = "cpu") -> LanguageModel:
    """A new model with initial weights in fp32, a pure function of (spec, seed)."""
    built = build(model)
    initialise(built, seed)
    return built.to(device)


def fuse(model: LanguageModel) -> LanguageModel:
    """Rewrite in place: q·k·v and gate·up each become one matrix product. The logical parameters stay, as views."""
    if "fuse" in model.rewrites or model.stored is not None:  # served: the block is one operator as it is
        return model
    for module in model.modules():
        match module:
            case SelfAttention(q=Linear(), k=Linear(), v=Linear()) | FeedForward(gate=Linear(), up=Linear()):
                module.fuse()
            case _:  # an adapter or a quantised matrix stands there, or there is nothing to join
                pass
    model.rewrites.append("fuse")
    return model


def unfuse(model: LanguageModel) -> LanguageModel:
    """Take `fuse` back: every logical parameter has its own memory again."""
    for module in model.modules():
        if isinstance(module, SelfAttention | FeedForward) and module.fused is not None:
            module.fused = None
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
    model.rewrites = [name for name in model.rewrites if name != "fuse"]
    return model
