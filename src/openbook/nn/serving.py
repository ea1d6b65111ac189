"""The form a model takes to be served: fp32 between the layers, and matrices whose rows do not know of each other.

`serve_form` replaces, in place and layer by layer, every linear map by one of `nn/packed.py` (fp32, bf16 or int8), the
experts' matrices by packed stacks, the maps of latent attention by stacks of one matrix for each head (latent.py), and
sets the matrix of the language head; norms and other small parameters become fp32. The embedding table stays as it is.
The logical parameters keep their names: `logical` gives them as tensors (for saving), `assign` puts a pushed one in its
place, `restore` takes the rewrite back (int8: with what was rounded away missing).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from openbook.errors import ConfigError, InputError, Refusal, nearest
from openbook.nn.attention import SelfAttention
from openbook.nn.delta import DeltaRule
from openbook.nn.embed import Table
from openbook.nn.heads import LanguageHead
from openbook.nn.latent import HeadMaps, ServedHeadMaps
from openbook.nn.linear import Linear
from openbook.nn.mlp import FeedForward
from openbook.nn.model import UNSERVED, LanguageModel, Stored
from openbook.nn.moe import Experts, Mixture
from openbook.nn.packed import Arena, Packed, PackedStack, RowLinear, as_fp32
from openbook.nn.selective import StateSpace

FORMS = ("fp32", "bf16", "int8")
STACKS = ("gate", "up", "down")


class Choice(NamedTuple):
    """How one matrix is kept. `smooth` [in] multiplies its input and divides the matrix (int8)."""

    kind: str
    smooth: Tensor | None = None


def serve_form(model: LanguageModel, kind: str, choices: Mapping[str, Choice] | None = None) -> LanguageModel:
    """Rewrite in place. `choices` decides for single matrices, by the names of `matrices`; the others become `kind`.

    Whatever the kind, routers, the steps of state spaces and the small heads stay fp32 unless chosen otherwise; with
    int8 the maps of latent attention are bf16.
    """
    _check(model, kind, choices)
    if f"serve {kind}" in model.rewrites and choices is None:
        return model
    if (done := form_of(model)) is not None:
        raise Refusal(f"This model is in its form for serving already ({done}). `restore` it first, or load it again.")
    named = matrices(model, kind) | dict(choices or {})
    parameters = dict(model.named_parameters())
    trainable = frozenset(name for name, parameter in parameters.items() if parameter.requires_grad)
    model.stored = Stored(parameters, model.compute_dtype, trainable)
    for module in model.modules():
        if isinstance(module, SelfAttention | FeedForward):
            module.fused = None
    arena = Arena()
    for path, choice in named.items():
        made = _replace(model, path, choice)
        if choice.kind != "fp32" or isinstance(made, ServedHeadMaps):  # at once: no two forms of it are ever there
            _empty(parameters, path)
        for part in made.modules():
            if isinstance(part, Packed | PackedStack) and part.tiles.device.type == "cpu":
                part.tiles = arena.take(part.tiles)
    for module in model.modules():
        if not isinstance(module, Table | Linear | Packed | LanguageHead) or isinstance(module, RowLinear):
            _widen(module)
    for head in _language(model):
        head.bias = None if head.bias is None else as_fp32(head.bias)
    for table in (t for t in model.modules() if isinstance(t, Table) and t not in _tokens(model)):
        _widen(table)
    model.compute_dtype = torch.float32
    model.rewrites = [name for name in model.rewrites if name != "fuse"] + [f"serve {kind}"]
    return model.requires_grad_(False)


def form_of(model: LanguageModel) -> str | None:
    """The kind the model was given by `serve_form`, if it was."""
    return next((name.removeprefix("serve ") for name in model.rewrites if name.startswith("serve ")), None)


def matrices(model: LanguageModel, kind: str) -> dict[str, Choice]:
    """Every matrix that takes a form, by name, and the form it takes by itself.

    A linear map by its path, an expert stack by its parameter's name, the language head as `heads.language`.
    """
    found: dict[str, Choice] = {}
    for path, module in model.named_modules():
        match module:
            case Mixture():
                found[f"{path}.router"] = Choice("fp32")
                if module.shared_gate is not None:
                    found[f"{path}.shared_gate"] = Choice("fp32")
            case StateSpace():
                found[f"{path}.step"] = Choice("fp32")
            case DeltaRule():
                found |= {f"{path}.{name}": Choice("fp32") for name in ("rate", "step")}
            case Experts():
                found |= {f"{path}.{n}": Choice(kind) for n in STACKS if module._parameters.get(n) is not None}
            case LanguageHead():
                found[path] = Choice(kind)
            case HeadMaps():
                found[path] = Choice("bf16" if kind == "int8" else kind)
            case Linear():
                small = path.startswith("heads.") and not path.startswith("heads.ahead.")
                found.setdefault(path, Choice("fp32" if small else kind))
            case _:
                pass
    return found


@torch.no_grad()
def _replace(model: LanguageModel, path: str, choice: Choice) -> nn.Module:
    owner, _, leaf = path.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(parent, Experts):
        stacked = parent._parameters.pop(leaf)
        assert stacked is not None
        if choice.kind == "fp32":
            parent.register_parameter(leaf, as_fp32(stacked))
        else:
            parent.add_module(leaf, PackedStack.of(stacked, choice.kind))
        return parent.get_submodule(leaf) if choice.kind != "fp32" else parent
    module = model.get_submodule(path)
    if isinstance(module, LanguageHead):
        weight = model.embed.tokens.weight if module.weight is None else module.weight
        module.packed = _formed(weight, None, choice)
        if choice.kind != "fp32":
            module.weight = None
        elif module.weight is not None and isinstance(module.packed, RowLinear):
            module.weight = module.packed.weight
        return module.packed
    assert isinstance(module, Linear)
    if isinstance(module, HeadMaps):
        maps = ServedHeadMaps.of(module, choice.kind)
        parent.add_module(leaf, maps)
        return maps
    made = _formed(module.weight, module.bias, choice)
    parent.add_module(leaf, made)
    return made


def _empty(parameters: Mapping[str, nn.Parameter], path: str) -> None:
    """Let go of the numbers of a matrix that has another form now."""
    matrix = parameters.get(f"{path}.weight", parameters.get(path))
    if matrix is not None:
        matrix.data = matrix.data.new_empty(0)


def _formed(weight: nn.Parameter, bias: nn.Parameter | None, choice: Choice) -> Packed | RowLinear:
    if choice.kind == "fp32":
        return RowLinear.of(weight, bias)
    return Packed.of(weight, choice.kind, bias, choice.smooth)


def _widen(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = as_fp32(parameter)


def _tokens(model: LanguageModel) -> list[Table]:
    source = model.source.embed if model.source is not None else None
    return [model.embed.tokens] + ([source.tokens] if source is not None else [])


def _language(model: LanguageModel) -> list[LanguageHead]:
    return [head for head in model.heads.values() if isinstance(head, LanguageHead)]


def _check(model: LanguageModel, kind: str, choices: Mapping[str, Choice] | None) -> None:
    if model.trains_only:
        raise Refusal(UNSERVED)
    if kind not in FORMS:
        raise ConfigError(f"A model is served as {', '.join(FORMS)}: got '{kind}'.{nearest(kind, FORMS)}")
    known = matrices(model, kind) if choices else {}
    for name, choice in (choices or {}).items():
        if name not in known:
            raise ConfigError(f"This model has no matrix '{name}' to choose a form for.{nearest(name, known)}")
        if choice.kind not in FORMS:
            raise ConfigError(f"A matrix is kept as {', '.join(FORMS)}: got '{choice.kind}' for '{name}'.")
        if choice.smooth is not None and name.rpartition(".")[2] in STACKS and "experts" in name.split("."):
            raise ConfigError(f"The experts' matrices take no smoothing: got one for '{name}'.")
        if choice.smooth is not None and isinstance(model.get_submodule(name), HeadMaps):
            raise ConfigError(f"The maps of latent attention take no smoothing: got one for '{name}'.")


# ---------------------------------------------------------------------------------------------- logical parameters


class Logical(Mapping[str, Tensor]):
    """Name → tensor of each logical parameter in the dtype it came in; one is made when it is asked for."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.plain = dict(model.named_parameters())
        parameters = self.plain if model.stored is None else model.stored.parameters
        self.dtypes = {name: p.dtype for name, p in parameters.items()}

    def __getitem__(self, name: str) -> Tensor:
        held = self._held(name)
        tensor = held.detach() if isinstance(held, Tensor) else held.unpack()
        return tensor.to(self.dtypes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)

    def shape(self, name: str) -> torch.Size:
        """Without making the tensor."""
        return self._held(name).shape

    def assign(self, name: str, tensor: Tensor) -> None:
        """Put other values in the place of a parameter, in whatever form it is kept."""
        if name not in self.dtypes:
            raise InputError(f"This model has no parameter '{name}'.{nearest(name, self.dtypes)}")
        held = self._held(name)
        if held.shape != tensor.shape:
            raise InputError(f"`{name}` has the shape {tuple(held.shape)}: got {tuple(tensor.shape)}.")
        if isinstance(held, Tensor):
            held.data.copy_(tensor)
        else:
            held.assign(tensor)
        for head in _language(self.model):
            if name == "embed.tokens.weight" and head.spec.tied and isinstance(head.packed, Packed):
                head.packed.assign(tensor)
            elif name == "embed.tokens.weight" and head.spec.tied and isinstance(head.packed, RowLinear):
                head.packed.weight.data.copy_(tensor)

    def _held(self, name: str) -> Tensor | Packed | PackedStack | ServedHeadMaps:
        owner, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(owner)
        if isinstance(module, LanguageHead) and leaf == "weight" and module.packed is not None:
            module = module.packed
        if isinstance(module, Packed | ServedHeadMaps) and leaf == "weight":
            return module
        stack = module._modules.get(leaf)
        if isinstance(stack, PackedStack):
            return stack
        parameter = module._parameters[leaf]
        assert parameter is not None
        return parameter


def logical(model: LanguageModel) -> Logical:
    """The logical parameters of a model in any form; a mapping, so `logical(model).items()` gives names and tensors."""
    return Logical(model)


def assign(model: LanguageModel, name: str, tensor: Tensor) -> None:
    """Put a pushed weight in place by its logical name, whatever form the model has."""
    with torch.no_grad():
        Logical(model).assign(name, tensor)


def put(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Put several pushed weights in place, all or none: names, shapes and numbers are checked before."""
    held = Logical(model)
    for name, tensor in weights.items():
        if name not in held:
            raise InputError(f"This model has no parameter '{name}'.{nearest(name, list(held))}")
        if held.shape(name) != tensor.shape:
            raise InputError(f"`{name}` has the shape {tuple(held.shape(name))}: got {tuple(tensor.shape)}.")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"`{name}` holds numbers that are not finite: nothing was changed.")
    for name, tensor in weights.items():
        assign(model, name, tensor)
    model.pushed += 1


@torch.no_grad()
def restore(model: LanguageModel) -> LanguageModel:
    """Take `serve_form` back: plain linear maps and stacks, in the dtypes they came in."""
    if model.stored is None:
        return model
    held = Logical(model)
    compute = model.stored.compute
    for head in _language(model):
        if not head.spec.tied:
            head.weight = nn.Parameter(held["heads.language.weight"])
        head.packed = None
    for path, module in list(model.named_modules()):
        owner, _, leaf = path.rpartition(".")
        if isinstance(module, ServedHeadMaps):
            model.get_submodule(owner).add_module(leaf, module.plain())
        elif isinstance(module, PackedStack) and isinstance(parent := model.get_submodule(owner), Experts):
            del parent._modules[leaf]
            parent.register_parameter(leaf, nn.Parameter(module.unpack()))
        elif isinstance(module, Packed | RowLinear):
            plain = Linear(0, 0)
            plain.weight = nn.Parameter(module.unpack() if isinstance(module, Packed) else module.weight.detach())
            plain.bias = module.bias
            model.get_submodule(owner).add_module(leaf, plain)
    for name, own in model.stored.parameters.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        parameter = module._parameters[leaf]
        assert parameter is not None
        own.data = parameter.detach().to(own.dtype)
        own.requires_grad_(name in model.stored.trainable)
        module._parameters[leaf] = own
    model.compute_dtype, model.stored = compute, None
    model.rewrites = [name for name in model.rewrites if not name.startswith("serve ")]
    return model
