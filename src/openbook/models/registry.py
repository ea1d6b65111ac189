"""The families there are: one of the two registries that users extend. `register` adds one; the rest are the files of
`families/`, found by their name.

`read` turns a config.json into a spec, `say` a spec into a config.json that reads back as the same spec.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from openbook.errors import ConfigError, InputError, OpenbookWarning, Refusal, alike
from openbook.models.config import INERT, Config
from openbook.models.family import CannotSay, Family
from openbook.nn import spec
from openbook.nn.build import check
from openbook.nn.prune import pruned

FILES = Path(__file__).parent / "families"
_ADDED: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family, or replace one."""
    _ADDED[family.model_type] = family


def known() -> list[str]:
    """The model types there are, in no family's favour."""
    return sorted({*map(_type_of, _modules()), *_ADDED})


def _modules() -> list[str]:
    return sorted(path.stem for path in FILES.glob("[a-z]*.py"))


@cache
def _family_in(module: str) -> Family:
    family: Family = import_module(f"openbook.models.families.{module}").FAMILY
    return family


def _type_of(module: str) -> str:
    return _family_in(module).model_type


def family_of(model_type: object, where: str = "config.json") -> Family:
    """The family of a `model_type`; an unknown one is an error that names the nearest."""
    if isinstance(model_type, str):
        if model_type in _ADDED:
            return _ADDED[model_type]
        module = model_type.replace("-", "_")
        if module in _modules() and _type_of(module) == model_type:
            return _family_in(module)
    raise ConfigError(
        f"The model type {model_type!r} of {where} is not one of the families here."
        f"{alike(str(model_type), known())} All families: {', '.join(known())}."
    )


def read(data: Mapping[str, Any], where: str = "config.json") -> tuple[Family, spec.Model]:
    """The family and the spec that a config.json says; keys without effect are reported."""
    config = Config(data, where)
    if config.has("quantization_config"):
        method = config.raw("quantization_config")
        name = method.get("quant_method") if isinstance(method, Mapping) else method
        raise ConfigError(f"{where} says that the weights are quantised ({name!r}); load the unquantised folder.")
    family = family_of(config.raw("model_type"), where)
    model = family.to_spec(config)
    if family.heads:
        model = replace(model, heads=family.heads[_architecture(family, config)](config))
        for heads in family.heads.values():  # what another architecture's heads would read is known too
            heads(config)
    try:
        model = _without_heads(model, config)
        check(model)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {where})") from error
    config.warn_unread()
    return family, model


def _without_heads(model: spec.Model, config: Config) -> spec.Model:
    """`pruned_heads`, {layer: [head, …]}: heads that the folder's tensors lack (as transformers 4 saved them)."""
    said = config.raw("pruned_heads")
    if not said:
        return model
    numbers = said.items() if isinstance(said, Mapping) else ()
    if not numbers or not all(str(n).isdecimal() and isinstance(h, list) for n, h in numbers):
        raise ConfigError(f"`pruned_heads` must be an object of layers and lists of heads: got {said!r}")
    try:
        return pruned(model, {int(n): h for n, h in numbers})
    except (InputError, Refusal) as error:
        raise ConfigError(f"`pruned_heads`: {error}") from error


def _architecture(family: Family, config: Config) -> str:
    named = config.raw("architectures")
    if not named:
        return next(iter(family.heads))
    first = named[0] if isinstance(named, list) else None
    # Folders older than their class in transformers spell it in their own way: MPTForCausalLM, LLaMAForCausalLM.
    found = next((name for name in family.heads if isinstance(first, str) and name.lower() == first.lower()), None)
    if found is None:
        raise ConfigError(
            f"The architecture {named!r} of {config.where} is not known for '{family.model_type}'."
            f"{alike(str(named), family.heads)} All: {', '.join(family.heads)}."
        )
    return found


def say(
    model: spec.Model, prefer: str | None = None, kept: Mapping[str, Any] | None = None
) -> tuple[Family, dict[str, Any]]:
    """A family and a config.json that read back as exactly `model`.

    `prefer` is tried first; `kept` are the keys of the config.json it came from, whose inert ones are written again.
    Where no family can say the spec it is written as it is, with a warning.
    """
    order = [prefer] if prefer else []
    order += [name for name in known() if name not in (*order, "openbook")]
    reasons = {}
    for name in order:
        family = family_of(name)
        try:
            return family, _say_as(family, model, kept or {})
        except (CannotSay, ConfigError, KeyError) as reason:
            reasons[name] = str(reason)
    because = f" ('{prefer}' cannot: {reasons[prefer]})" if prefer and prefer != "openbook" else ""
    if prefer != "openbook":
        warnings.warn(
            f"No published family can say this model{because}; it is saved with model_type 'openbook', "
            "which other tools do not read.",
            OpenbookWarning,
            stacklevel=3,
        )
    family = family_of("openbook")
    return family, {"model_type": "openbook", **_inert(kept or {}), **family.from_spec(model)}


def _inert(kept: Mapping[str, Any]) -> dict[str, Any]:
    own = ("model_type", "architectures", "pruned_heads")
    return {key: value for key, value in kept.items() if key in INERT and key not in own}


def _say_as(family: Family, model: spec.Model, kept: Mapping[str, Any]) -> dict[str, Any]:
    if not family.heads:
        raise CannotSay("it is the last resort")
    said = {**_inert(kept), **family.from_spec(model), "model_type": family.model_type}
    body = replace(family.to_spec(Config(said)), heads=())
    if body != replace(model, heads=()):
        raise CannotSay(f"it would read back as another model: {_difference(body, model)}")
    for architecture, heads in family.heads.items():
        if heads(Config(said)) == model.heads:
            return {"architectures": [architecture], **said}
    raise CannotSay("it has no architecture with these heads")


def _difference(a: Any, b: Any, where: str = "") -> str:
    """The first place where two specs differ."""
    if is_dataclass(a) and type(a) is type(b):
        for field in fields(a):
            if field.name != "heads" and getattr(a, field.name) != getattr(b, field.name):
                return _difference(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            if one != other:
                return _difference(one, other, f"{where}[{number}]")
    return f"{where.lstrip('.')} {b!r} would become {a!r}"
