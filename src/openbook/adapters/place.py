"""Which of a model's modules an adapter changes, and how: published names to ours, with all shapes checked.

Families that publish several of our matrices as one (q, k and v in one) get one A and a part of B for each of ours.
Symbols: see nn/shapes.py; R is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from openbook.adapters.folder import ALL_LINEAR, WEIGHTS, Adapter
from openbook.errors import CheckpointError, ConfigError, Refusal, nearest
from openbook.models.names import Part, locate
from openbook.models.registry import say
from openbook.nn.attentive import AttentiveLayer
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel
from openbook.nn.norm import Normalise
from openbook.nn.packed import Packed
from openbook.nn.recurrent import Cell
from openbook.nn.serving import logical

KINDS = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "base_layer.bias", "bias")


@dataclass(frozen=True)
class Delta:
    """What an adapter does to one of our modules; all fp32.

    down [R,in] and up [out,R], scale included; shift [out] is added; bias [out] stands in place of the module's own;
    magnitude [out] (DoRA) is the length of each row of the adapted matrix.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    shift: Tensor | None = None
    bias: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Site:
    """One published module: ours that it is, in order, and which of its rows each is; or why it cannot be adapted."""

    paths: tuple[str, ...]
    rows: tuple[Part | None, ...] = ()
    refusal: str = ""
    biased: bool = False
    linear: bool = False


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map that an adapter can stand on."""
    return isinstance(module, Linear | Packed)


def weight_of(module: nn.Module) -> Tensor:
    """The matrix [out,in] of a linear map, in fp32."""
    if isinstance(module, Packed):
        return module.unpack()
    assert isinstance(module, Linear)
    return module.weight.detach().float()


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear map."""
    assert isinstance(module, Linear | Packed)
    outs, ins = module.shape
    return outs, ins


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear map or a norm."""
    return module._parameters.get("bias")


def sites(model: LanguageModel) -> tuple[dict[str, Site], str]:
    """Published module name → site; and the prefix of the family's base model."""
    family, _ = say(model.spec, model.config.get("model_type"), model.config)
    held = logical(model)
    shapes = {name: held.shape(name) for name in held}
    modules = dict(model.named_modules())
    found: dict[str, list[tuple[str, Part | None]]] = {}
    refused: dict[str, str] = {}
    biased, inside = set(), _stepwise(modules)
    for name, place in locate(family.names(model.spec), shapes).items():
        path, _, leaf = name.rpartition(".")
        reason = inside.get(path) or _refusal(path, modules[path])
        for theirs in place.theirs:
            module, _, end = theirs.rpartition(".")
            if end == "bias":
                biased.add(module)
            if reason or "{e}" in place.entry.theirs or leaf not in ("weight", "bias"):
                refused.setdefault(module, reason or f"`{path}`, which is no linear map of its own")
            elif leaf == "weight":
                found.setdefault(module, []).append((path, place.entry.rows))
            else:
                found.setdefault(module, [])
    made = {}
    for name, parts in found.items():
        parts.sort(key=lambda part: 0 if part[1] is None else part[1].which)
        paths, rows = tuple(path for path, _ in parts), tuple(rows for _, rows in parts)
        linear = bool(paths) and is_linear(modules[paths[0]])
        made[name] = Site(paths, rows, biased=name in biased, linear=linear)
    for name, reason in refused.items():
        made[name] = Site((), (), reason, name in biased)
    return made, family.prefix


def _stepwise(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Maps that a recurrence runs token by token, so that their rows are not those of the step, and what to say."""
    found = []
    for path, module in modules.items():
        if isinstance(module, Cell):
            found += [f"{path}.state", f"{path}.project"]
        elif isinstance(module, AttentiveLayer):
            found += [f"{path}.{name}" for name, _ in module.named_modules()]
    return {path: f"`{path}`, which runs one token at a time inside a recurrence" for path in found}


def _refusal(path: str, module: nn.Module) -> str:
    if path.startswith("heads."):
        return "a head"
    if is_linear(module) or isinstance(module, Normalise):
        return ""
    return f"`{path}`, which is no linear map of its own"


def place(adapter: Adapter, model: LanguageModel) -> dict[str, Delta]:
    """Our module's path → what is done to it. Every tensor must have its place, and every place its tensors."""
    known, prefix = sites(model)
    given = _by_module(adapter, known, prefix)
    spelled = {name: name for name in known}
    if prefix and not any(name.startswith(prefix) for name in given.spelled.values()):
        spelled = {name: name.removeprefix(prefix) for name in known}
    wanted = _wanted(adapter, known, spelled)
    modules = dict(model.named_modules())
    deltas: dict[str, Delta] = {}
    for name, expected in wanted.items():
        tensors = given.tensors.pop(name, {})
        if missing := sorted(expected - set(tensors)):
            raise _wrong(adapter, f"lacks '{spelled[name]}.{missing[0]}', which its settings ask for")
        if surplus := sorted(set(tensors) - expected):
            raise _wrong(adapter, f"holds '{spelled[name]}.{surplus[0]}', which its settings do not ask for")
        sizes = [_sizes(modules[path]) for path in known[name].paths]
        _check_shapes(adapter, spelled[name], tensors, sizes)
        deltas |= _deltas(adapter, spelled[name], known[name], tensors)
    if given.tensors:
        name, tensors = next(iter(given.tensors.items()))
        raise _wrong(adapter, f"holds '{given.spelled[name]}.{next(iter(tensors))}', which its settings do not ask for")
    return deltas


def _wrong(adapter: Adapter, what: str) -> CheckpointError:
    return CheckpointError(f"'{adapter.folder}/{WEIGHTS}' {what}. It belongs to another model, or its copy is damaged.")


@dataclass(frozen=True)
class _Given:
    tensors: dict[str, dict[str, Tensor]]  # published module → kind → tensor
    spelled: dict[str, str]  # published module → as the file has it


def _by_module(adapter: Adapter, known: Mapping[str, Site], prefix: str) -> _Given:
    given = _Given({}, {})
    for tensor_name, tensor in adapter.tensors.items():
        kind = next((kind for kind in KINDS if tensor_name.endswith(f".{kind}")), None)
        if kind is None:
            raise Refusal(
                f"'{adapter.folder}/{WEIGHTS}' holds '{tensor_name}': only LoRA matrices, magnitudes and biases of "
                "linear maps can be used here."
            )
        module = tensor_name.removesuffix(f".{kind}")
        name = module if module in known else prefix + module
        if name not in known:
            raise CheckpointError(
                f"'{adapter.folder}/{WEIGHTS}' holds '{tensor_name}', and this model has no '{module}'."
                f"{nearest(module, known)} The adapter was trained on another model."
            )
        kind = "bias" if kind == "base_layer.bias" else kind
        if kind in given.tensors.setdefault(name, {}):
            raise CheckpointError(f"'{adapter.folder}/{WEIGHTS}' holds the {kind} of '{module}' twice.")
        given.tensors[name][kind] = tensor
        given.spelled[name] = module
    return given


def _wanted(adapter: Adapter, known: Mapping[str, Site], spelled: Mapping[str, str]) -> dict[str, set[str]]:
    """Published module → kinds of tensors that the settings ask for."""
    settings = adapter.settings
    wanted: dict[str, set[str]] = {}
    adapted = False
    for name, site in known.items():
        kinds: set[str] = set()
        if settings.targeted(spelled[name]) and (site.linear or settings.targets != ALL_LINEAR):
            if not site.linear:
                what = site.refusal or "a norm"
                raise Refusal(f"'{adapter.folder}' adapts '{spelled[name]}': {what} cannot be adapted here.")
            adapted = True
            kinds |= {"lora_A.weight", "lora_B.weight"}
            kinds |= {"lora_B.bias"} if settings.lora_bias else set()
            kinds |= {"lora_magnitude_vector"} if settings.dora else set()
        if site.biased and (settings.bias == "all" or (settings.bias == "lora_only" and kinds)):
            if site.refusal:
                raise Refusal(
                    f"'{adapter.folder}' holds a bias of '{spelled[name]}': {site.refusal} keeps its own here."
                )
            kinds.add("bias")
        if kinds:
            wanted[name] = kinds
    if not adapted:
        leaves = {name.rpartition(".")[2] for name, site in known.items() if site.linear}
        raise ConfigError(
            f"'{adapter.folder}' adapts {settings.targets!r}: this model has no such linear map."
            f"{nearest(str(settings.targets), leaves)}"
        )
    return wanted


def _sizes(module: nn.Module) -> tuple[int, int]:
    if is_linear(module):
        return shape_of(module)
    bias = bias_of(module)
    assert bias is not None
    return len(bias), len(bias)


def _check_shapes(adapter: Adapter, name: str, tensors: Mapping[str, Tensor], sizes: list[tuple[int, int]]) -> None:
    outs, ins, rank = sum(out for out, _ in sizes), sizes[0][1], adapter.settings.rank_of(name)
    shapes = {"lora_A.weight": (rank, ins), "lora_B.weight": (outs, rank)}
    for kind, tensor in tensors.items():
        if tensor.shape != shapes.get(kind, (outs,)):
            raise CheckpointError(
                f"'{name}.{kind}' in '{adapter.folder}/{WEIGHTS}' has shape {tuple(tensor.shape)}; this model and rank "
                f"{rank} need {shapes.get(kind, (outs,))}."
            )


def _deltas(adapter: Adapter, name: str, site: Site, tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    scale = adapter.settings.scale_of(name)
    up, shift = tensors.get("lora_B.weight"), tensors.get("lora_B.bias")
    up, shift = None if up is None else up * scale, None if shift is None else shift * scale
    bias, magnitude = tensors.get("bias"), tensors.get("lora_magnitude_vector")
    down = tensors.get("lora_A.weight")
    return {
        path: Delta(down, *(_part(whole, rows) for whole in (up, shift, bias, magnitude)))
        for path, rows in zip(site.paths, site.rows, strict=True)
    }


def _part(whole: Tensor | None, rows: Part | None) -> Tensor | None:
    """Of a published module's tensor, the rows of one of ours."""
    return whole if whole is None or rows is None else rows.take(whole).contiguous()
