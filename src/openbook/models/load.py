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
from openbook.models.config import Config
from openbook.models.family import Family
from openbook.models.folder import INDEX, WEIGHTS, Weights, read_config, resolve
from openbook.models.names import Place, locate, publish
from openbook.models.registry import read, say
from openbook.models.sentences import HEAD as SENTENCE
from openbook.models.sentences import dense_tensor, read_sentence, write_sentence
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
    model_spec = settled(model_spec, family, config, weights)
    with torch.device("meta"):
        model = build(model_spec)
    model.config = config
    places = _places(model, family, weights)
    for parameter, place in places.items():
        own = model.get_parameter(parameter)
        # What no gradient moves, such as the corrections of routers, stays as exact as it was stored.
        tensor = _fitting(parameter, own, place, weights, target if own.requires_grad else None)
        _assign(model, parameter, tensor.to(device=where))
    for parameter in [name for name, _ in model.named_parameters() if name.startswith(SENTENCE)]:
        tensor = dense_tensor(folder, parameter, model.get_parameter(parameter).shape)
        _assign(model, parameter, tensor.to(device=where, dtype=target or tensor.dtype))
    return model.eval()


def as_held(model: spec.Model, family: Family, weights: Weights) -> spec.Model:
    """The spec without what the folder leaves out: a language head of its own (it is tied), predictions further ahead.

    Many folders say that they predict further ahead and hold nothing for it.
    """
    heads: list[spec.Head] = []
    for head in model.heads:
        match head:
            case spec.Language(tied=False) if not _holds(model, family, weights, "heads.language.weight"):
                heads.append(replace(head, tied=True))
            case spec.MultiToken() if not _holds(model, family, weights, "heads.ahead.steps.0.join.weight"):
                pass
            case _:
                heads.append(head)
    return replace(model, heads=tuple(heads))


def _holds(model: spec.Model, family: Family, weights: Weights, ours: str) -> bool:
    """Whether the folder has the tensor of one of our parameters."""
    place = locate(family.names(model), {ours: torch.Size((1, 1))})[ours]
    return place.theirs[0] in weights.files


def settled(model: spec.Model, family: Family, config: Mapping[str, Any], weights: Weights) -> spec.Model:
    """The spec as the folder's tensors and modules have it: its head tied or not; a sentence encoder's head.

    A sentence encoder's folder often names the architecture that it was made of and holds the encoder alone: of the
    family's architectures, the named one first, it then is the first whose tensors are all there.
    """
    model = as_held(model, family, weights)
    sentence = read_sentence(weights.folder)
    if sentence is None:
        return model
    options = [model.heads, *(heads(Config(config)) for heads in family.heads.values()), ()]
    heads = next(heads for heads in options if not heads or _heads_there(replace(model, heads=heads), family, weights))
    return replace(model, heads=(*heads, sentence))


def _heads_there(model: spec.Model, family: Family, weights: Weights) -> bool:
    with torch.device("meta"):
        heads = build(model).heads
    shapes = {f"heads.{name}": parameter.shape for name, parameter in heads.named_parameters()}
    alias = _aliases(weights, family)
    theirs = (one for place in locate(family.names(model), shapes).values() for one in place.theirs)
    return all(alias.get(one, one) in weights.files for one in theirs)


def _places(model: LanguageModel, family: Family, weights: Weights) -> dict[str, Place]:
    """Where each parameter is in the folder; missing tensors are an error, left-over ones a warning."""
    named = model.named_parameters()
    shapes = {name: parameter.shape for name, parameter in named if not name.startswith(SENTENCE)}
    places = locate(family.names(model.spec), shapes)
    alias = _aliases(weights, family)
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


def _aliases(weights: Weights, family: Family) -> dict[str, str]:
    """Table name → name in the files, for folders published without (or with) the base's prefix or with old names."""
    alias = {}
    for name in weights.files:
        modern = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        head = re.sub(
            r"^(cls\.predictions|predictions|lm_head)\.bias$", r"\1.decoder.bias", name
        )  # once the same tensor
        other = next((re.sub(p, to, name) for p, to in family.respelled.items() if re.fullmatch(p, name)), name)
        for spelled in {modern, family.prefix + modern, head, other}:
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
    sentence = next((head for head in model.spec.heads if isinstance(head, spec.Sentence)), None)
    said = replace(model.spec, heads=tuple(head for head in model.spec.heads if head is not sentence))
    family, config = say(said, model.config.get("model_type"), model.config)
    parameters = logical(model)
    shapes = {name: parameters.shape(name) for name in parameters if not name.startswith(SENTENCE)}
    places = locate(family.names(said), shapes)
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
        if sentence is not None:
            dense = {name: parameters[name] for name in parameters if name.startswith(SENTENCE)}
            write_sentence(part, sentence, said.stack.dim, {n: t.to(stored) for n, t in dense.items()})
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
