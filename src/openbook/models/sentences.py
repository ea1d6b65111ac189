"""Folders of sentence encoders (Reimers & Gurevych 2019): what turns hidden states into the vector of a text.

    modules.json              the steps: Transformer, Pooling, Dense …, Normalize, each with a folder
    1_Pooling/config.json     how the tokens become one vector
    2_Dense/                  config.json and model.safetensors: a linear map of the vector
    sentence_bert_config.json the most tokens of a text

They become a head of the model, `spec.Sentence`, and are written again from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from openbook.errors import CheckpointError, ConfigError, OpenbookWarning
from openbook.files import read_json, write_json
from openbook.models.config import Config
from openbook.models.folder import WEIGHTS, Weights
from openbook.nn import spec

MODULES, LIMITS, ABOUT = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
HEAD = "heads.sentence."
# Their words for the ways of pooling, in their order, and ours; the second were keys of their own once.
POOLINGS: Mapping[str, spec.Pooled] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "root",
    "weightedmean": "weighted",
    "lasttoken": "last",
}
ONCE = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
FUNCTIONS = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Sigmoid": "sigmoid", "Identity": None}


def read_sentence(folder: Path) -> spec.Sentence | None:
    """The sentence head that a folder's modules say; None where it has none."""
    if not (folder / MODULES).is_file():
        return None
    steps = _steps(folder)
    kinds = [kind for kind, _ in steps]
    ways: tuple[spec.Pooled, ...] = ()
    dense: list[spec.Transform] = []
    for kind, path in steps[1:]:
        if kind == "Pooling" and not ways:
            ways = _pooling(_config(folder / path))
        elif kind == "Dense" and ways and "Normalize" not in kinds[: len(dense) + 2]:
            dense.append(_dense(_config(folder / path)))
        elif kind != "Normalize" or kinds[-1] != kind:
            raise _unknown(folder, kinds)
    if kinds[:1] != ["Transformer"] or steps[0][1] or not ways:
        raise _unknown(folder, kinds)
    limits = _config(folder, LIMITS) if (folder / LIMITS).is_file() else Config({})
    limits.fixed("do_lower_case", False, False)
    _warn_of_prompts(folder)
    longest = limits.size("max_seq_length") if limits.has("max_seq_length") else None
    return spec.Sentence(by=ways, dense=tuple(dense), normalise="Normalize" in kinds, longest=longest)


def _steps(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each step."""
    listed = read_json(folder / MODULES)
    steps = []
    for item in listed if isinstance(listed, list) else ():
        kind, path = (item.get("type"), item.get("path")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str) or not _is_name(path):
            raise ConfigError(
                f"'{folder / MODULES}' lists steps with a `type` and a `path` in this folder: got {item}."
            )
        steps.append((kind.rpartition(".")[2], path))
    return steps


def _is_name(path: str) -> bool:
    """Whether it names something in the folder itself, or the folder (the empty string)."""
    return Path(path).name == path and path != ".." and "\0" not in path


def _unknown(folder: Path, kinds: list[str]) -> ConfigError:
    return ConfigError(
        f"'{folder / MODULES}' names the steps {', '.join(kinds) or 'of nothing'}; what is read here is Transformer "
        "(in the folder itself), Pooling, any number of Dense, and Normalize."
    )


def _config(folder: Path, name: str = "config.json") -> Config:
    return Config(read_json(folder / name), f"'{folder / name}'")


def _pooling(config: Config) -> tuple[spec.Pooled, ...]:
    config.fixed("include_prompt", True, True)
    named = config.raw("pooling_mode", [theirs for key, theirs in ONCE.items() if config.get(key, False)])
    listed = [named] if isinstance(named, str) else named
    if not isinstance(listed, list) or not listed or any(one not in list(POOLINGS) for one in listed):
        raise ConfigError(f"`pooling_mode` of {config.where} is one or more of {', '.join(POOLINGS)}: got {named!r}.")
    return tuple(POOLINGS[one] for one in listed)


def _dense(config: Config) -> spec.Transform:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    function = name.rpartition(".")[2]
    if not name.startswith("torch.nn.modules.") or function not in FUNCTIONS:
        raise ConfigError(f"`activation_function` of {config.where} is torch's {', '.join(FUNCTIONS)}: got {name!r}.")
    return spec.Transform(
        activation=FUNCTIONS[function], dim=config.size("out_features"), bias=config.get("bias", True)
    )


def _warn_of_prompts(folder: Path) -> None:
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    name = about.get("default_prompt_name") if isinstance(about, Mapping) else None
    if name is not None:
        prompts = about.get("prompts")
        prompt = prompts.get(name) if isinstance(prompts, Mapping) and isinstance(name, str) else None
        warnings.warn(
            f"'{folder}' was made to put its prompt {name!r} before every text; that is left to you: {prompt!r}.",
            OpenbookWarning,
            stacklevel=4,
        )


def dense_tensor(folder: Path, name: str, shape: torch.Size) -> Tensor:
    """The tensor of a sentence head's parameter, `heads.sentence.dense.0.linear.weight` and so on."""
    number, theirs = name.removeprefix(f"{HEAD}dense.").split(".", 1)
    place = [path for kind, path in _steps(folder) if kind == "Dense"][int(number)]
    weights = Weights(folder / place)
    if theirs not in weights.files or weights.shape(theirs) != list(shape):
        raise CheckpointError(f"'{folder / place}' has no '{theirs}' of shape {tuple(shape)}.")
    return weights.read(theirs)


# ------------------------------------------------------------------------------------------------ writing


def write_sentence(folder: Path, head: spec.Sentence, dim: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the modules of a sentence head; `dim` is the stack's width, `tensors` are those of the head."""
    places = {"Transformer": "", "Pooling": "1_Pooling"}
    kinds = ["Transformer", "Pooling", *["Dense"] * len(head.dense), *["Normalize"] * head.normalise]
    steps = []
    for number, kind in enumerate(kinds):
        path = places.get(kind, f"{number}_{kind}")
        (folder / path).mkdir(exist_ok=True)
        steps.append({"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"})
    write_json(folder / MODULES, steps)
    theirs = {ours: name for name, ours in POOLINGS.items()}
    ways = [theirs[way] for way in head.by]
    said: dict[str, Any] = {key: name in ways for key, name in ONCE.items()}
    if ways != [name for name in POOLINGS if name in ways]:  # keys of their own could not say the order
        said = {"pooling_mode": ways}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **said, "include_prompt": True})
    write_json(folder / LIMITS, {"max_seq_length": head.longest, "do_lower_case": False})
    width = dim * len(ways)
    for number, layer in enumerate(head.dense):
        place, own = folder / f"{number + 2}_Dense", f"{HEAD}dense.{number}."
        name = next((theirs for theirs, ours in FUNCTIONS.items() if ours == layer.activation), None)
        if name is None or layer.norm is not None:
            raise ConfigError(f"A sentence encoder's folder cannot say this dense layer: {layer}.")
        kind = "linear.Identity" if name == "Identity" else f"activation.{name}"
        write_json(
            place / "config.json",
            {
                "in_features": width,
                "out_features": layer.dim or width,
                "bias": layer.bias,
                "activation_function": f"torch.nn.modules.{kind}",
            },
        )
        mine = {key.removeprefix(own): t.contiguous() for key, t in tensors.items() if key.startswith(own)}
        save_file(mine, place / WEIGHTS, metadata={"format": "pt"})
        width = layer.dim or width
