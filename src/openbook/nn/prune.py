"""Removing attention heads (Michel et al. 2019, arXiv 1905.10650): a smaller model that says what masking them would.

`pruned` says it as a value, `prune_heads` makes the model. A head's share of the output is its columns of `out`, so
leaving it out is exact. Layers with grouped queries lose whole groups, keys and values with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from openbook.errors import InputError, Refusal
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel

Removed = Mapping[int, Collection[int]]  # block of the (decoder) stack → heads, by their present numbers
Heads = spec.Attention | spec.LatentAttention | spec.GlobalAttention | spec.DisentangledAttention


def pruned(model: spec.Model, heads: Removed) -> spec.Model:
    """The spec without these heads.

    Raises InputError for heads that are not there, Refusal for a layer that would keep none, for part of a group, for
    layers that share a position bias of each head and for heads that are normalised as one vector.
    """
    blocks = list(model.stack.blocks)
    for number, removed in heads.items():
        if not 0 <= number < len(blocks):
            raise InputError(f"There is no block {number} to prune: this stack has blocks 0 to {len(blocks) - 1}.")
        place = _place(blocks[number], number)
        branches = list(blocks[number].branches)
        branches[place] = replace(branches[place], layer=_smaller(branches[place].layer, set(removed), number))
        blocks[number] = replace(blocks[number], branches=tuple(branches))
    return replace(model, stack=replace(model.stack, blocks=tuple(blocks)))


@torch.no_grad()
def prune_heads(model: LanguageModel, heads: Removed) -> LanguageModel:
    """A new model without these heads, `{block: [head, …]}`; the old one stays as it is.

    Errors as `pruned`; Refusal also for a model in its form for serving or with adapters.
    """
    if model.stored is not None:
        raise Refusal("This model is in its form for serving: `restore` it before heads are removed.")
    with torch.device("meta"):
        made = build(pruned(model.spec, heads))
    before = dict(model.named_parameters())
    if before.keys() != dict(made.named_parameters()).keys():
        raise Refusal(
            "This model is not as it was built (adapters?): take off what was added before heads are removed."
        )
    kept = {f"stack.blocks.{n}.branches.{_place(model.spec.stack.blocks[n], n)}.layer.": n for n in heads}
    for name, parameter in list(made.named_parameters()):
        prefix = next((start for start in kept if name.startswith(start)), None)
        tensor: Tensor = before[name]
        if prefix is not None:
            number = kept[prefix]
            layer = model.spec.stack.blocks[number].branches[_place(model.spec.stack.blocks[number], number)].layer
            assert isinstance(layer, Heads)
            tensor = _cut(tensor, parameter.shape, layer, set(heads[number]), name.removeprefix(prefix))
        owner, _, leaf = name.rpartition(".")
        made.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor.clone(), before[name].requires_grad))
    made.config, made.compute_dtype = dict(model.config), model.compute_dtype
    return made.train(model.training)


def _place(block: spec.Block, number: int) -> int:
    """Where a block has its attention."""
    for place, branch in enumerate(block.branches):
        if isinstance(branch.layer, Heads):
            return place
    raise InputError(f"Block {number} has no self-attention to remove heads of.")


def _smaller(layer: spec.Layer, removed: set[int], number: int) -> spec.Layer:
    assert isinstance(layer, Heads)
    if wrong := sorted(removed - set(range(layer.heads))):
        raise InputError(f"Block {number} has heads 0 to {layer.heads - 1}: got {wrong}.")
    if len(removed) == layer.heads:
        raise Refusal(f"Block {number} would keep no head; leave it one.")
    count = layer.heads - len(removed)
    if not isinstance(layer, spec.Attention):
        return replace(layer, heads=count)
    if isinstance(layer.norm, spec.QueryKeyNorm) and layer.norm.over == "width":
        raise Refusal(
            f"The heads of block {number} are normalised as one vector: without some, the others would change."
        )
    if layer.relative:
        raise Refusal(f"The heads of block {number} have a position bias that all layers share: none can be removed.")
    group = layer.heads // layer.kv_heads
    groups = {head // group for head in removed}
    if len(groups) * group != len(removed):
        whole = ", ".join(str(list(range(g * group, (g + 1) * group))) for g in sorted(groups))
        raise Refusal(
            f"Block {number} shares keys and values among {group} heads: remove whole groups ({whole}), "
            f"not {sorted(removed)}."
        )
    return replace(layer, heads=count, kv_heads=layer.kv_heads - len(groups))


def _cut(tensor: Tensor, shape: torch.Size, layer: Heads, removed: set[int], name: str) -> Tensor:
    """The rows (of `out` the columns) of the heads that stay."""
    count = layer.heads
    if isinstance(layer, spec.Attention) and name.split(".")[0] in ("k", "v", "k_norm"):
        group = layer.heads // layer.kv_heads
        count, removed = layer.kv_heads, {head // group for head in removed}
    stay = torch.tensor([head for head in range(count) if head not in removed], device=tensor.device)
    for dim, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if old != new:
            return tensor.unflatten(dim, (count, -1)).index_select(dim, stay).flatten(dim, dim + 1)
    return tensor
