"""Replaced-token detection (Clark et al. 2020, §2): a small generator fills masks with words that it draws, and the
model learns to say of every token whether it is the one that stood there.

    loss = Σ_masked -log p_G(x)  / masked  +  λ · Σ_tokens binary cross-entropy of D / tokens          λ = 50 (§3.1)

The two share their embeddings (§3.2). No gradient passes through the drawing; a word drawn right counts as original.
A word is drawn with one number from 0 to 1 for each place, `targets["draw"]` of masked.py, by walking along the
cumulated chances: a pure function of the row, so that steps may be split anyhow (law 5). B rows, T tokens, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.data.batch import Batch
from openbook.errors import ConfigError
from openbook.models.make import make
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.train.head_loss import IGNORE, head_loss, learned
from openbook.train.objectives import Term, hidden_states, language_head, real_tokens

HEAD = "replaced"


class Pair(LanguageModel):
    """The discriminator, which is the model, with the generator that it is trained against; one embedding for both."""

    def __init__(self, discriminator: LanguageModel, generator: LanguageModel) -> None:
        heads = dict(discriminator.heads.items())
        super().__init__(discriminator.spec, discriminator.embed, discriminator.stack, heads, None)
        self.widen = discriminator.widen
        generator.embed = discriminator.embed
        self.generator = generator

    def apart(self) -> tuple[LanguageModel, LanguageModel]:
        """Discriminator and generator, each a model of its own with these parameters."""
        alone = LanguageModel(self.spec, self.embed, self.stack, dict(self.heads.items()), None)
        alone.widen, alone.config = self.widen, dict(self.config)
        self.generator.config = dict(self.config)
        return alone, self.generator


def generator_of(model: spec.Model, share: float) -> spec.Model:
    """The generator for a discriminator: `share` of its heads and hidden features in as many blocks (§3.2).

    Errors: ConfigError for a discriminator whose blocks are none of plain attention and feed-forward layers.
    """
    layers = [branch.layer for block in model.stack.blocks for branch in block.branches]
    attention = next((layer for layer in layers if isinstance(layer, spec.Attention)), None)
    if attention is None or not all(isinstance(layer, spec.Attention | spec.MLP) for layer in layers):
        raise ConfigError("A generator can be made for models of attention and feed-forward layers.")
    heads = max(1, round(attention.heads * share))
    dim = heads * attention.head_dim

    def smaller(layer: spec.Layer) -> spec.Layer:
        if isinstance(layer, spec.Attention):
            return replace(layer, heads=heads, kv_heads=max(1, round(layer.kv_heads * heads / layer.heads)))
        assert isinstance(layer, spec.MLP)
        return replace(layer, hidden=max(1, round(layer.hidden * share)))

    def block(its: spec.Block) -> spec.Block:
        return replace(its, branches=tuple(replace(one, layer=smaller(one.layer)) for one in its.branches))

    width, norm = model.embed.dim, model.embed.norm or model.stack.final_norm
    head = spec.Language(
        bias=True, transform=spec.Transform(activation="gelu", norm=norm, dim=None if width == dim else width)
    )
    stack = replace(model.stack, dim=dim, blocks=tuple(map(block, model.stack.blocks)))
    return replace(model, stack=stack, heads=(head,))


def make_pair(model: spec.Model, share: float, seed: int, device: str | torch.device = "cpu") -> Pair:
    """A new discriminator and its generator, a pure function of (spec, share, seed)."""
    if HEAD not in [head.name for head in model.heads if isinstance(head, spec.Classes)]:
        raise ConfigError(f"Replaced-token detection needs a model with the head '{HEAD}': one label for each token.")
    return Pair(make(model, seed, device), make(generator_of(model, share), seed + 1, device))


@dataclass(frozen=True, kw_only=True)
class ReplacedToken:
    """The loss of both: `language` of the generator, `replaced` of the discriminator at `weight`.

    `hidden_only`: the discriminator learns from the words that were hidden alone (the paper's "ELECTRA 15%", §3.4).
    """

    weight: float = 50.0
    hidden_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"`weight` of the discriminator's loss must be above 0: got {self.weight}.")

    def counts(self, batch: Batch) -> dict[str, float]:
        """Hidden words, and every token that the discriminator learns from."""
        hidden = float((batch.targets["language"] != IGNORE).sum())
        return {"language": hidden, HEAD: hidden if self.hidden_only else float(real_tokens(batch).sum())}

    def __call__(self, model: LanguageModel, batch: Batch) -> dict[str, Term]:
        """Summed losses in nats; shown are the generator's and the discriminator's shares of right answers."""
        assert isinstance(model, Pair), "replaced-token detection trains a pair"
        targets = batch.targets["language"]  # [B,T]
        states, words = learned(hidden_states(model.generator, batch, None), targets)
        states, head = language_head(model.generator, states)
        loss = head_loss(states, head, words)
        with torch.no_grad():
            logits = F.linear(states, head.weight.to(states.dtype), None if head.bias is None else head.bias.to(states))
            chosen = targets != IGNORE
            drawn = draw(logits, batch.targets["draw"][chosen])
        original = torch.where(chosen, targets, batch.ids)
        given = original.masked_scatter(chosen, drawn)
        wrong = (given != original).float()
        hidden = hidden_states(model, replace(batch, ids=given), None)
        answers = model.classify(hidden, HEAD).squeeze(-1).float()  # [B,T]
        real = chosen if self.hidden_only else real_tokens(batch)
        total = F.binary_cross_entropy_with_logits(answers[real], wrong[real], reduction="sum")
        right = ((answers > 0) == (wrong > 0))[real].sum()
        guessed = (drawn == words).sum()
        return {
            "language": Term(loss.total, 1.0, {"nll": loss.nll, "guessed": guessed}),
            HEAD: Term(total, self.weight, {"accuracy": right, "fakes": wrong[real].sum()}),
        }


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The words [N] of logits [N,V] at which their cumulated chances pass `uniform` [N]."""
    passed = logits.float().softmax(dim=-1).cumsum(dim=-1)  # [N,V]
    return (passed <= uniform.unsqueeze(1)).sum(dim=-1).clamp(max=logits.shape[1] - 1)
