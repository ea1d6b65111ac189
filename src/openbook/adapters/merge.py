"""An adapter merged into the base's own weights: a recorded rewrite that can be taken back exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openbook.adapters.folder import Adapter, read
from openbook.adapters.lora import gain_of
from openbook.adapters.place import Delta, bias_of, place
from openbook.errors import Refusal
from openbook.nn.linear import Linear
from openbook.nn.model import LanguageModel


@dataclass(frozen=True)
class Merged:
    """What `unmerge` needs: the rewrite's name, and the parameters as they were."""

    rewrite: str
    before: dict[str, Tensor]


@torch.no_grad()
def merge(model: LanguageModel, adapter: str | Path | Adapter) -> Merged:
    """Put an adapter into the weights, in place: W + B A, or g · (W + B A) with DoRA. Its biases replace the base's."""
    value = adapter if isinstance(adapter, Adapter) else read(adapter)
    deltas = place(value, model)
    for path, delta in deltas.items():
        module = model.get_submodule(path)
        if delta.up is not None and not isinstance(module, Linear):
            raise Refusal(f"`{path}` is kept in another form: merge the adapter before the model takes it.")
        if delta.shift is not None and delta.bias is None and bias_of(module) is None:
            raise Refusal(f"`{path}` has no bias that the adapter's could be merged into. Use it unmerged.")
    done = Merged(f"merge {value.folder}", {})
    for path, delta in deltas.items():
        _merge(model, path, delta, done.before)
    model.rewrites.append(done.rewrite)
    return done


def _merge(model: LanguageModel, path: str, delta: Delta, before: dict[str, Tensor]) -> None:
    module = model.get_submodule(path)
    gain = gain_of(delta, module)
    if delta.up is not None and delta.down is not None and isinstance(module, Linear):
        before[f"{path}.weight"] = module.weight.detach().clone()
        weight = module.weight.float() + (delta.up @ delta.down).to(module.weight.device)
        module.weight.copy_(weight if gain is None else weight * gain.unsqueeze(1))
    bias = bias_of(module)
    if bias is None or (delta.bias is None and delta.shift is None):
        return
    before[f"{path}.bias"] = bias.detach().clone()
    new = bias.float() if delta.bias is None else delta.bias.to(bias.device)
    bias.copy_(new if delta.shift is None else new + delta.shift.to(bias.device))


@torch.no_grad()
def unmerge(model: LanguageModel, merged: Merged) -> LanguageModel:
    """Take `merge` back, bit for bit. The last one merged is the first to go."""
    last = [name for name in model.rewrites if name.startswith("merge ")]
    if not last or last[-1] != merged.rewrite:
        raise Refusal(f"The last adapter merged is {last[-1] if last else 'none'!r}, not '{merged.rewrite}'.")
    for name, tensor in merged.before.items():
        model.get_parameter(name).copy_(tensor)
    place_of = len(model.rewrites) - 1 - model.rewrites[::-1].index(merged.rewrite)
    del model.rewrites[place_of]
    return model
