"""Other rows for a model: its token embedding and the head that speaks, for a vocabulary that was changed.

A row of the new model is a row of the old one or the mean of several, and so is a row of the head's matrix and of its
bias. Everything else is the old model's own memory. Where the rows come from is decided on the side of the text
(text/surgery/). A mean over all rows leaves out padding, the rows that no token has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from openbook.errors import ConfigError, InputError
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel

Rows = Sequence[Sequence[int]]
# All parameters that have a row for each token, in any model; the head's are its own only where it is not tied.
OF_TOKENS = (
    "embed.tokens.weight", "source.embed.tokens.weight", "heads.language.weight", "heads.language.bias",
)  # fmt: skip


def with_vocabulary(
    model: LanguageModel,
    rows: Rows,
    *,
    known: int,
    ids: Mapping[int, int] | None = None,
    donor: LanguageModel | None = None,
    multiple: int = 1,
) -> LanguageModel:
    """A model like `model` whose row of each id is the mean of the old rows that `rows` names; none: of all rows.

    known      old rows that have a token
    ids        old id → new id, for the special ids in config.json; None: they stay
    donor      the rows are this model's, of the same widths; None: those of `model`
    multiple   the number of rows is made a multiple of it; rows without a token are zero

    InputError: a row that is not there, a model in another form than it was loaded in, widths that differ.
    """
    giver = model if donor is None else donor
    for one in {model, giver}:
        if one.stored is not None or one.rewrites:
            raise InputError("The vocabulary is changed of a model as it was loaded: not fused, quantised or adapted.")
    have = giver.spec.embed.vocab
    if not 1 <= known <= have:
        raise InputError(f"The tokenizer has {known} ids, the model {have} rows: they do not belong together.")
    wrong = next((number for sources in rows for number in sources if not 0 <= number < known), None)
    if not rows or wrong is not None:
        raise InputError(f"Rows must be made of ids from 0 to {known - 1}: got {wrong}.")
    count = -(-len(rows) // multiple) * multiple
    with torch.device("meta"):
        made = build(_resized(model.spec, count, ids))
    tables = _tables(model, giver)
    pool = _Pool(rows, known, count)
    for name, parameter in model.named_parameters():
        tensor = pool.of(tables[name]) if name in tables else parameter.detach()
        owner, _, leaf = name.rpartition(".")
        trained = nn.Parameter(tensor.contiguous(), requires_grad=parameter.requires_grad)
        setattr(made.get_submodule(owner), leaf, trained)
    made.config = _renumbered(model.config, ids)
    made.compute_dtype = model.compute_dtype
    return made.train(model.training)


def _tables(model: LanguageModel, giver: LanguageModel) -> dict[str, Tensor]:
    """The giver's tables for the parameters of `model` that have a row for each token."""
    given = dict(giver.named_parameters())
    tables: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in OF_TOKENS:
            fallback = "embed.tokens.weight" if name.endswith("weight") else name  # of a giver whose head is tied
            table = given.get(name, given.get(fallback))
            if table is None or table.shape[1:] != parameter.shape[1:]:
                got = "none" if table is None else f"a width of {tuple(table.shape[1:])}"
                raise InputError(
                    f"`{name}` has a width of {tuple(parameter.shape[1:])}, and the model whose rows are taken has "
                    f"{got}. Take them from a model of the same width, with as many biases."
                )
            tables[name] = table.detach()
    sizes = {len(table) for table in tables.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"This model reads and writes two vocabularies, of {' and '.join(map(str, sorted(sizes)))} ids: "
            "one tokenizer cannot be changed for both."
        )
    return tables


class _Pool:
    """How rows are gathered: those that have one source are copied as they are, others are means in fp32."""

    def __init__(self, rows: Rows, known: int, count: int) -> None:
        self.known, self.count = known, count
        self.copies = [(number, sources[0]) for number, sources in enumerate(rows) if len(sources) == 1]
        self.means = [(number, list(sources)) for number, sources in enumerate(rows) if len(sources) != 1]

    def of(self, table: Tensor) -> Tensor:
        """[V,…] → [count,…]"""
        out = table.new_zeros((self.count, *table.shape[1:]))
        if self.copies:
            new, old = torch.tensor(self.copies, device=table.device).T
            out[new] = table[old]
        for number, sources in self.means:
            out[number] = table[sources or slice(self.known)].float().mean(dim=0)
        return out


def _resized(model: spec.Model, count: int, ids: Mapping[int, int] | None) -> spec.Model:
    def embed(one: spec.Embed) -> spec.Embed:
        padding = one.padding if ids is None or one.padding is None else ids.get(one.padding)
        return replace(one, vocab=count, padding=padding)

    source = model.source
    if source is not None and source.embed is not None:
        source = replace(source, embed=embed(source.embed))
    return replace(model, embed=embed(model.embed), source=source)


def _renumbered(config: Mapping[str, Any], ids: Mapping[int, int] | None) -> dict[str, Any]:
    """config.json with its special ids renumbered; one that no row is left of goes."""
    if ids is None:
        return dict(config)
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not key.endswith("_token_id") or value is None:
            found[key] = value
        elif isinstance(value, list):
            found[key] = [ids[one] for one in value if one in ids]
        elif value in ids:
            found[key] = ids[value]
    return found
