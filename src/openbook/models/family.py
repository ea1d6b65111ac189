"""What a family is: `config.json` → value, value → `config.json`, and a table of weight names run both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openbook.models.config import Config
from openbook.models.names import Name
from openbook.nn import spec

Heads = tuple[spec.Head, ...]


class CannotSay(Exception):
    """This family cannot write this spec as a `config.json`; the message says why."""


# Our words for the sizes → the keys of a config.json, as most families spell them.
SIZES: Mapping[str, str] = {
    "vocab": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "tied": "tie_word_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    `to_spec` gives the model without heads; `heads` maps each architecture it is published as to the heads it has, the
    usual one first. `prefix` stands before the base model's tensors and is missing where the bare base is published.
    `ignore` are patterns of published tensors that hold nothing to load; `respelled` are patterns of other names that a
    tensor of the table is published under, and what it is there. `sizes`: see `SIZES`; `before`: by how many rows the
    published number of positions is larger than the context.
    """

    model_type: str
    to_spec: Callable[[Config], spec.Model]
    from_spec: Callable[[spec.Model], dict[str, Any]]
    names: Callable[[spec.Model], tuple[Name, ...]]
    heads: Mapping[str, Callable[[Config], Heads]]
    prefix: str = ""
    ignore: tuple[str, ...] = ()
    respelled: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    before: int = 0


def none(config: Config) -> Heads:  # noqa: ARG001
    """The bare model."""
    return ()


def language(config: Config, default: bool = False) -> Heads:
    """A language head, tied or not."""
    return (spec.Language(tied=config.get("tie_word_embeddings", default)),)


def labels(config: Config) -> int:
    """How many labels a class head has: `id2label`, else `num_labels`, else 2."""
    named = config.get("id2label", None, dict)
    return len(named) if named else config.size("num_labels", 2)


def classes_of_last(config: Config) -> Heads:
    """The class head of decoders: one linear map of the last token."""
    return (spec.Classes(count=labels(config), over="last", bias=False),)


def layers_of(model: spec.Stack, kind: type[spec.Layer]) -> list[Any]:
    """All layers of one kind in a stack, in order; none is more than this family can say."""
    found = [branch.layer for block in model.blocks for branch in block.branches if isinstance(branch.layer, kind)]
    if not found:
        raise CannotSay(f"there is no {kind.__name__}")
    return found


def branches_of(stack: spec.Stack) -> list[spec.Branch]:
    """All branches of a stack, in order."""
    return [branch for block in stack.blocks for branch in block.branches]
