"""What training minimises: sums over tokens, and their counts, which are known before the forward pass.

An objective says `counts(batch)` on the host and gives, for a model and a batch, named terms. The loop adds the
counts of all micro-batches and ranks of a step and divides each term's total by its count once; so a step does not
depend on how its rows were split (law 5), which a mean of means would.

    Language      next-token, masked-token and sequence-to-sequence cross-entropy: they differ in the batch alone
    BothWays      the same of a model that reads both ways apart: the next token and the one before
    Classification  labels of rows or of tokens

`mask_tokens` makes a masked-language batch (Devlin et al. 2019 §3.1) as a pure function of the seed and the row's
number, so that it also is independent of the split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.data.batch import Batch
from openbook.errors import ConfigError, DataError
from openbook.nn.ahead import shifted
from openbook.nn.heads import LanguageHead
from openbook.nn.model import LanguageModel
from openbook.nn.routing import Decision
from openbook.train.experts import Mixtures, loads, losses, mixtures, weights_of
from openbook.train.head_loss import IGNORE, HeadWeights, head_loss, learned


class Term(NamedTuple):
    """One summed part of a loss: Σ over what is counted, its weight, and sums that are only shown."""

    total: Tensor  # scalar with gradient
    weight: float = 1.0
    shown: Mapping[str, Tensor] = {}  # scalars without gradient, divided by the same count
    loads: Mapping[str, Tensor] = {}  # of experts: vectors that are only added up (train/experts.py)


class Objective(Protocol):
    """What the loop asks of a loss."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """What each term's total is divided by, for this batch alone, on the host. Always the same names."""
        ...

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """The terms, under the names of `counts`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """Predictions of tokens beyond the next one, to `depth`; the mean of their losses has this weight (λ).

    DeepSeek-AI 2024b eq. 24–25; they used 0.3, then 0.1.
    """

    depth: int
    weight: float = 0.3

    @property
    def names(self) -> dict[int, str]:
        """The term of each depth."""
        return {depth: f"ahead {depth}" for depth in range(1, self.depth + 1)}


@dataclass(frozen=True, kw_only=True)
class Language:
    """Cross-entropy of `batch.targets[target]` [B,T] under the language head; `IGNORE`d places are not learned from.

    Experts whose spec has a `balance` weight add the load-balancing loss (Fedus et al. 2021 §2.2), those with `z_loss`
    the router's z-loss (Zoph et al. 2022 eq. 5). Balance is no sum over tokens: each micro-batch is balanced by itself
    and weighs by its tokens. An encoder's experts are judged by themselves, as `source_…`. With `ahead` every depth of
    the model's multi-token head is a term of its own, over the tokens that have one so far ahead.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    target: str = "language"
    ahead: Ahead | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"`label_smoothing` must be from 0 to below 1: got {self.label_smoothing}.")
        if self.ahead is not None and not 0 <= self.ahead.weight < float("inf"):
            raise ConfigError(f"`ahead.weight` must be 0 or more: got {self.ahead.weight}. DeepSeek-V3 used 0.3.")
        if not 0 <= self.z_loss < float("inf"):
            raise ConfigError(f"`z_loss` must be 0 or more: got {self.z_loss}. PaLM used 1e-4.")

    def counts(self, batch: Batch) -> dict[str, float]:
        """Tokens to learn from; every real token for the terms of experts."""
        wanted, real = {"language": self._targets(batch), **self._further(batch)}, float(real_tokens(batch).sum())
        found = {name: float((targets != IGNORE).sum()) for name, targets in wanted.items()}
        found |= {"balance": real, "router_z": real}
        if batch.source is not None:
            read = float(real_sources(batch).sum())
            found |= {"source_balance": read, "source_router_z": read}
        return found

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """`language`: the summed loss in nats; `balance` and `router_z` only where the model asks for them."""
        if model.spec.language is not None and model.spec.language.directions != 1:
            raise ConfigError("This model's head says the token before, too: its objective is `BothWays`.")
        ours = mixtures(model, ahead=self.ahead is not None)
        theirs = mixtures(model, source=True) if model.source else []
        routers: list[Decision] | None = [] if ours and model.training else None
        sources: list[Decision] | None = [] if theirs and model.training else None
        hidden = hidden_states(model, batch, routers, sources)  # [B,T,D]
        states, targets = learned(hidden, self._targets(batch))
        states, head = language_head(model, states)
        loss = head_loss(states, head, targets, self.label_smoothing, self.z_loss)
        shown = {"nll": loss.nll} | ({"z": loss.z} if self.z_loss else {})
        terms = {"language": Term(loss.total, 1.0, shown)}
        if self.ahead is not None:
            terms |= self._look_ahead(self.ahead, model, batch, hidden, routers)
        if routers:
            terms |= expert_terms(ours, routers, real_tokens(batch).flatten())
        if sources:
            terms |= expert_terms(theirs, sources, real_sources(batch).flatten(), "source_")
        return terms

    def _further(self, batch: Batch) -> dict[str, Tensor]:
        """The targets [B,T] of every depth, under the names of the terms."""
        if self.ahead is None:
            return {}
        targets = self._targets(batch)
        return {name: shifted(targets, depth, batch.segments, IGNORE) for depth, name in self.ahead.names.items()}

    def _look_ahead(
        self, ahead: Ahead, model: LanguageModel, batch: Batch, hidden: Tensor, routers: list[Decision] | None
    ) -> dict[str, Term]:
        has = 0 if model.spec.ahead is None else model.spec.ahead.depth
        if has != ahead.depth:
            raise ConfigError(f"The model predicts {has} tokens beyond the next: got ahead.depth={ahead.depth}.")
        found = model.ahead(batch.ids, hidden, positions=batch.positions, segments=batch.segments, routers=routers)
        terms: dict[str, Term] = {}
        for further, (name, targets) in zip(found, self._further(batch).items(), strict=True):
            states, wanted = learned(further, targets)
            states, head = language_head(model, states)
            loss = head_loss(states, head, wanted, self.label_smoothing, self.z_loss)
            terms[name] = Term(loss.total, ahead.weight / ahead.depth)
        return terms

    def _targets(self, batch: Batch) -> Tensor:
        if self.target not in batch.targets:
            raise DataError(f"This batch has no targets '{self.target}'; it has {sorted(batch.targets)}.")
        return batch.targets[self.target]


@dataclass(frozen=True, kw_only=True)
class BothWays:
    """Two language models that share embedding and head (Peters et al. 2018 §3.1): the sum of their cross-entropies.

    ahead: the next token, `targets["language"]`; back: the token before, of the same segment.
    """

    def counts(self, batch: Batch) -> dict[str, float]:
        """Tokens to learn from, each way."""
        return {name: float((targets != IGNORE).sum()) for name, targets in self._targets(batch).items()}

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """`ahead` and `back`: the summed losses in nats."""
        states, head = language_head(model, hidden_states(model, batch, None))  # [B,T,2,D/2]
        if states.ndim != 4:
            raise ConfigError("`BothWays` needs a language head with directions=2.")
        terms = {}
        for (name, targets), own in zip(self._targets(batch).items(), states.unbind(2), strict=True):
            rows, wanted = learned(own, targets)
            terms[name] = Term(head_loss(rows, head, wanted).total)
        return terms

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        back = torch.full_like(batch.ids, IGNORE)
        back[:, 1:] = batch.ids[:, :-1]
        if batch.segments is not None:
            same = torch.zeros_like(batch.ids, dtype=torch.bool)
            same[:, 1:] = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != 0)
            back = torch.where(same, back, IGNORE)
        return {"ahead": batch.targets["language"], "back": back}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy of labels under a class head: `targets[head]` [B] for whole rows, [B,T] for tokens."""

    head: str = "classes"
    label_smoothing: float = 0.0

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels that are not `IGNORE`."""
        return {self.head: float((batch.targets[self.head] != IGNORE).sum())}

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """The summed loss in nats."""
        if "mix" in model.heads:
            hidden = model.encode(batch.ids, segments=batch.segments, types=batch.types)
        else:
            hidden = hidden_states(model, batch, None)
        logits = model.classify(hidden, self.head, batch.segments).float().flatten(0, -2)  # [N,labels]
        labels = batch.targets[self.head].flatten()
        total = F.cross_entropy(
            logits, labels, reduction="sum", ignore_index=IGNORE, label_smoothing=self.label_smoothing
        )
        right = ((logits.argmax(-1) == labels) & (labels != IGNORE)).sum()
        return {self.head: Term(total, 1.0, {"accuracy": right})}


def real_tokens(batch: Batch) -> Tensor:
    """Which places of a batch are no padding, [B,T] boolean."""
    return torch.ones_like(batch.ids, dtype=torch.bool) if batch.segments is None else batch.segments != 0


def real_sources(batch: Batch) -> Tensor:
    """Which places of a batch's sources are no padding, [B,S] boolean."""
    assert batch.source is not None
    segments = batch.source_segments
    return torch.ones_like(batch.source, dtype=torch.bool) if segments is None else segments != 0


def expert_terms(layers: Mixtures, routers: list[Decision], real: Tensor, prefix: str = "") -> dict[str, Term]:
    """The terms of a stack's experts and their loads. `real` [tokens] marks the tokens that are no padding."""
    balance, z_weight = weights_of(layers)
    balanced, z = losses(routers, real)
    terms = {f"{prefix}balance": Term(balanced, balance, {}, loads(layers, routers, real))}
    return terms | ({f"{prefix}router_z": Term(z, z_weight)} if z_weight else {})


def hidden_states(
    model: LanguageModel,
    batch: Batch,
    routers: list[Decision] | None,
    sources: list[Decision] | None = None,
) -> Tensor:
    """The model's last hidden states [B,T,D] for a batch; an encoder-decoder reads `batch.source`.

    Where a model has a prefix and the batch marks none, it is what stands before the first target of each text.
    """
    marks = batch.marks
    if marks is None and model.spec.prefixed and "language" in batch.targets:
        marks = batch.prefixes()
    encoded = None if batch.source is None else model.encode_source(batch.source, batch.source_segments, sources)
    return model.hidden(
        batch.ids,
        positions=batch.positions,
        segments=batch.segments,
        types=batch.types,
        encoded=encoded,
        source_segments=batch.source_segments,
        routers=routers,
        marks=marks,
    )


def language_head(model: LanguageModel, states: Tensor) -> tuple[Tensor, HeadWeights]:
    """States [N,D] as the head's matrix takes them, and that matrix."""
    if "language" not in model.heads:
        raise ConfigError(f"This objective needs a language head; the model's heads are {sorted(model.heads)}.")
    head = model.heads["language"]
    assert isinstance(head, LanguageHead)
    weight = head.matrix(model.embed.tokens.weight)
    return head.before(states), HeadWeights(weight, head.bias, head.spec.softcap)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How tokens are hidden for masked-language training: of the chosen, `keep` stay and `random` become any word."""

    mask: int  # the mask token's id
    vocab: int
    specials: tuple[int, ...] = field(default=())  # never chosen
    rate: float = 0.15
    random: float = 0.1
    keep: float = 0.1


def mask_tokens(batch: Batch, masking: Masking, seed: int, first_row: int) -> Batch:
    """A masked-language batch of the same rows: chosen ids replaced, targets at the chosen places only."""
    ids, chosen = batch.ids.clone(), torch.zeros_like(batch.ids, dtype=torch.bool)
    special, real = torch.tensor(masking.specials, dtype=ids.dtype), real_tokens(batch)
    for row in range(len(ids)):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + first_row + row) % 2**63)
        pick = torch.rand(ids.shape[1], generator=generator) < masking.rate
        how = torch.rand(ids.shape[1], generator=generator)
        word = torch.randint(masking.vocab, (ids.shape[1],), generator=generator)
        pick &= real[row] & ~torch.isin(batch.ids[row], special)
        new = torch.where(how < masking.random, word, masking.mask)
        new = torch.where(how >= 1 - masking.keep, batch.ids[row], new)
        ids[row] = torch.where(pick, new, batch.ids[row])
        chosen[row] = pick
    targets = torch.where(chosen, batch.ids, IGNORE)
    return replace(batch, ids=ids, targets={**batch.targets, "language": targets})
