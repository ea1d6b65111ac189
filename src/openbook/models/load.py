"""Loading and saving Hugging Face folders: no conversion step, no second copy of the weights, never pickle."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from openbook.errors import CheckpointError, ConfigError, OpenbookWarning, nearest
from openbook.files import explain_os_error, write_json
from openbook.models.family import Family
from openbook.models.folder import INDEX, WEIGHTS, Weights, read_config, resolve
from openbook.models.names import Place, locate, publish
from openbook.models.registry import read, say
from openbook.models.staging import staged
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.serving import logical
from openbook.runtime import pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHARD = 2 * 2**30  # bytes in one file of weights


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by name; None and 'auto' keep what the files hold."""
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"Unknown dtype '{name}' for weights.{nearest(name, DTYPES)}")
    return DTYPES[name]


def load(
    name: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LanguageModel:
    """A model from any folder of a supported family, in evaluation mode.

    `name` is a path, or a repository in the local Hugging Face cache or on the hub. `dtype`: 'float32', 'bfloat16',
    'float16', or None for what the files hold. On the CPU the parameters are the memory-mapped files themselves.
    Raises ConfigError for a config.json we do not understand and CheckpointError for weights that do not fit it.
    """
    target, where = pick_dtype(dtype), pick_device(str(device))
    folder = resolve(name)
    config = read_config(folder)
    family, model_spec = read(config, f"'{folder / 'config.json'}'")
    weights = Weights(folder)
    model_spec = tied_if_absent(model_spec, family, weights)
    with torch.device("meta"):
        model = build(model_spec)
    model.config = config
    places = _places(model, family, weights)
    for parameter, place in places.items():
        tensor = _fitting(parameter, model.get_parameter(parameter), place, weights, target)
        _assign(model, parameter, tensor.to(device=where))
    return model.eval()


def tied_if_absent(model: spec.Model, family: Family, weights: Weights) -> spec.Model:
    """The spec with its language head tied where the folder holds none of its own."""
    head = model.language
    if head is None or head.tied:
        return model
    theirs = locate(family.names(model), {"heads.language.weight": torch.Size((1, 1))})["heads.language.weight"].theirs[
        0
    ]
    if theirs in weights.files:
        return model
    heads = tuple(replace(item, tied=True) if isinstance(item, spec.Language) else item for item in model.heads)
    return replace(model, heads=heads)


def _places(model: LanguageModel, family: Family, weights: Weights) -> dict[str, Place]:
    """Where each parameter is in the folder; missing tensors are an error, left-over ones a warning."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    places = locate(family.names(model.spec), shapes)
    alias = _aliases(weights, family.prefix)
    found = {name: Place(p.entry, tuple(alias.get(one, one) for one in p.theirs)) for name, p in places.items()}
    missing = sorted({one for p in found.values() for one in p.theirs if one not in weights.files})
    if missing:
        raise CheckpointError(
            f"'{weights.folder}' lacks {len(missing)} of its tensors: {_some(missing)}. "
            "The copy was interrupted, or config.json describes another model."
        )
    used = {one for p in found.values() for one in p.theirs}
    inert = [*family.ignore, r"(.*\.)?lm_head\.weight" if model.spec.language and model.spec.language.tied else r"(?!)"]
    left = [one for one in sorted(set(weights.files) - used) if not any(re.fullmatch(rule, one) for rule in inert)]
    if left:
        warnings.warn(
            f"'{weights.folder}' holds {len(left)} tensors that this model has no place for: {_some(left)}.",
            OpenbookWarning,
            stacklevel=3,
        )
    return found


def _aliases(weights: Weights, prefix: str) -> dict[str, str]:
    """Table name → name in the files, for folders published without (or with) the base's prefix or with old names."""
    alias = {}
    for name in weights.files:
        modern = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        head = re.sub(
            r"^(cls\.predictions|predictions|lm_head)\.bias$", r"\1.decoder.bias", name
        )  # once the same tensor
        for spelled in {modern, prefix + modern, head}:
            if spelled != name and spelled not in weights.files:
                alias[spelled] = name
    return alias


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _fitting(name: str, parameter: nn.Parameter, place: Place, weights: Weights, dtype: torch.dtype | None) -> Tensor:
    """The tensor of one parameter, if it has the right shape and kind: the mapped file, or a copy where it must be."""
    stored = weights.read(place.theirs[0])
    if not stored.is_floating_point() or stored.element_size() < 2:
        raise CheckpointError(f"'{place.theirs[0]}' is {stored.dtype}: a quantised tensor without its rules.")
    try:
        if place.as_stored and dtype in (None, stored.dtype):
            tensor = place.read(weights.read)
        else:
            read = weights.copy if place.as_stored else weights.glance
            tensor = place.read(lambda one: read(one, dtype))
    except (RuntimeError, IndexError) as error:
        shapes = [weights.shape(one) for one in place.theirs]
        raise CheckpointError(
            f"{_some(list(place.theirs))} has shape {shapes[0]}, which cannot be `{name}`."
        ) from error
    if tensor.shape != parameter.shape:
        raise CheckpointError(
            f"'{place.theirs[0]}' in '{weights.folder}' gives `{name}` the shape {tuple(tensor.shape)}; "
            f"config.json says {tuple(parameter.shape)}. They are of different models."
        )
    return tensor


def _assign(model: LanguageModel, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    trained = model.get_parameter(name).requires_grad
    setattr(module, leaf, nn.Parameter(tensor.contiguous(), requires_grad=trained))


def save(
    model: LanguageModel, folder: str | Path, *, dtype: str | torch.dtype | None = None, shard: int = SHARD
) -> None:
    """Write `model` as a Hugging Face folder that other tools load: config.json and safetensors, sharded when large.

    The files take their places at the end, so that a crash or a full disk leaves what was there. Other files in the
    folder stay. `dtype` casts the written weights; `shard` is the most bytes in one file.
    """
    folder = Path(folder)
    target = pick_dtype(dtype)
    if shard < 1:
        raise ConfigError(f"`shard` is the most bytes in one file: got {shard}.")
    family, config = say(model.spec, model.config.get("model_type"), model.config)
    parameters = logical(model)
    places = locate(family.names(model.spec), {name: parameters.shape(name) for name in parameters})
    makers = publish(places, parameters)
    stored = target or model.embed.tokens.weight.dtype
    config = {**config, "dtype": str(stored).removeprefix("torch.")}
    config.pop("torch_dtype", None)
    with staged(folder) as part:
        try:
            _write_weights(part, makers, target, shard)
        except SafetensorError as error:  # it hides the operating system's error in its text
            code = re.search(r"\(os error (\d+)\)", str(error))
            if code is None:
                raise CheckpointError(f"Cannot write the weights to '{folder}': {error}.") from error
            cause = OSError(int(code[1]), os.strerror(int(code[1])))
            raise explain_os_error(cause, folder, "write the weights to") from error
        except OSError as error:
            raise explain_os_error(error, folder, "write the weights to") from error
        write_json(part / "config.json", config)


def _write_weights(folder: Path, makers: Mapping[str, Any], dtype: torch.dtype | None, shard: int) -> None:
    """One file, or shards with an index; at most one shard is in memory beside the model."""
    groups: list[list[str]] = [[]]
    size = total = 0
    sizes = {}
    for name, make in makers.items():
        tensor = make()
        sizes[name] = tensor.numel() * (torch.empty(0, dtype=dtype).element_size() if dtype else tensor.element_size())
        if groups[-1] and size + sizes[name] > shard:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += sizes[name]
        total += sizes[name]
    files: dict[str, str] = {}
    for number, names in enumerate(groups):
        file = WEIGHTS if len(groups) == 1 else f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: makers[name]() for name in names}
        tensors = {name: (t.to(dtype) if dtype else t).cpu().clone() for name, t in tensors.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
