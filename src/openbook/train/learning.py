"""What a recipe's objective trains: the model, the rows it learns from, what it is measured on, and the loss.

next      the next word                     any model that writes from left to right
masked    words that were hidden            encoders with a masked-language head
replaced  which words a generator drew      encoders with a discriminator's head, and a generator made for them
"""

from __future__ import annotations

from dataclasses import replace

import torch

from openbook.data.heldout import HeldOut, Together
from openbook.data.loader import Reader
from openbook.errors import ConfigError
from openbook.models.make import make, spec_of
from openbook.nn import spec
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer
from openbook.train.experts import with_experts
from openbook.train.heldout import Texts
from openbook.train.masked import MaskedRows, MaskedTexts
from openbook.train.objectives import Ahead, BothWays, Language, Masking, Objective
from openbook.train.recipe import Recipe
from openbook.train.replaced import ReplacedToken, make_pair
from openbook.train.step import Rows

# In RoBERTa's order, whose positions count from the padding id on.
ENCODER_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def check_model(recipe: Recipe, vocab: int | None = None, *, training: bool = True) -> spec.Model:
    """The spec that the recipe says, whole; with a tokenizer's `vocab`, the two must fit.

    Without `training`, as it is when training has ended: no dropout, nothing that was asked of experts for its time.
    """
    part = recipe.model
    if part.vocab is not None and vocab is not None and part.vocab < vocab:
        raise ConfigError(
            f"`model.vocab` is {part.vocab}, but the tokenizer has {vocab} ids. Leave `model.vocab` out, "
            f"or make it {vocab} or more."
        )
    sizes = part.sizes(vocab or recipe.tokenizer.vocab, recipe.data.block)
    head = {"masked": "language", "replaced": "replaced"}.get(recipe.objective)
    model = spec_of(part.family, sizes, part.spec or part.more, None if part.spec else head)
    if not part.spec:  # which says its own
        model = with_dropout(model, part.dropout if training else 0.0)
    model = with_experts(model, recipe.experts, whole=training)
    if model.context is not None and model.context < recipe.data.block:
        raise ConfigError(f"`data.block` is {recipe.data.block}, longer than the model's `context`, {model.context}.")
    writes = model.language is not None and (model.causal or model.language.directions == 2)
    if recipe.objective == "next" and (not writes or model.source is not None):
        raise ConfigError(
            f"The objective 'next' trains models that write from left to right; '{part.family}' does not. Encoders "
            'learn with `objective = "masked"`, and those with a discriminator\'s head with "replaced".'
        )
    if recipe.objective != "next" and (model.causal or model.source is not None):
        raise ConfigError(
            f"`objective = {recipe.objective!r}` trains models that see both ways; '{part.family}' does not."
        )
    return model


def with_dropout(model: spec.Model, rate: float) -> spec.Model:
    """The same model with this dropout of embeddings, attention weights and branches, and no other."""

    def layer(its: spec.Layer) -> spec.Layer:
        if isinstance(its, spec.Mixer | spec.CrossAttention):
            return replace(its, dropout=rate)
        return replace(its, dropout=0.0) if isinstance(its, spec.MLP) else its

    def block(its: spec.Block) -> spec.Block:
        return replace(its, branches=tuple(replace(b, layer=layer(b.layer), dropout=rate) for b in its.branches))

    stack = replace(model.stack, blocks=tuple(map(block, model.stack.blocks)), dropout=0.0)
    heads = tuple(
        replace(one, block=block(one.block)) if isinstance(one, spec.MultiToken) else one for one in model.heads
    )
    return replace(model, embed=replace(model.embed, dropout=rate), stack=stack, heads=heads)


def language_of(recipe: Recipe, model: spec.Model) -> Language:
    """The loss of the language head that the recipe says, for this model."""
    ahead = None if model.ahead is None else Ahead(depth=model.ahead.depth, weight=recipe.loss.ahead)
    return Language(label_smoothing=recipe.loss.label_smoothing, z_loss=recipe.loss.z_loss, ahead=ahead)


def make_model(recipe: Recipe, tokenizer: Tokenizer, device: torch.device) -> LanguageModel:
    """The new model, with its generator where it learns to find what that replaced."""
    model, seed = check_model(recipe, tokenizer.vocab), recipe.train.seed
    positions = model.embed.positions
    if isinstance(positions, spec.Learned) and positions.offset and positions.offset != (tokenizer.pad or 0) + 1:
        raise ConfigError(
            f"The positions of a '{recipe.model.family}' begin after the padding id, here {positions.offset - 1}, and "
            f"the tokenizer's is {tokenizer.pad}. Say `pad_token_id` in [model.more], or use another tokenizer."
        )
    if recipe.objective == "replaced":
        return make_pair(model, recipe.generator.share, seed, device)
    return make(model, seed, device)


def learning(
    recipe: Recipe, model: spec.Model, tokenizer: Tokenizer, loader: Reader, held: HeldOut | Together[HeldOut] | None
) -> tuple[Rows, Texts | None, Objective]:
    """What the recipe's objective learns from, is measured on, and minimises."""
    if model.language is not None and model.language.directions == 2:
        if recipe.loss.label_smoothing or recipe.loss.z_loss:
            raise ConfigError("A model that reads both ways apart has a plain loss: leave out [loss].")
        return loader, held, BothWays()
    if recipe.objective == "next":
        return loader, held, language_of(recipe, model)
    if tokenizer.mask is None:
        raise ConfigError(
            f"`objective = {recipe.objective!r}` hides words behind a mask token, and this tokenizer has none. Use one "
            "that has, or leave `tokenizer.path` out: it is then trained with one."
        )
    part, detects = recipe.masking, recipe.objective == "replaced"
    usual = 0.0 if detects else 0.1
    masking = Masking(
        mask=tokenizer.mask,
        vocab=tokenizer.vocab,
        specials=tuple(tokenizer.specials.values()),
        rate=part.rate,
        random=usual if part.random is None else part.random,
        keep=usual if part.keep is None else part.keep,
    )
    seed = recipe.train.seed
    rows = MaskedRows(loader, masking, seed, draws=detects)
    texts: Texts | None = None
    if isinstance(held, Together):
        texts = Together({name: MaskedTexts(one, masking, seed, draws=detects) for name, one in held.parts.items()})
    elif held is not None:
        texts = MaskedTexts(held, masking, seed, draws=detects)
    if detects:
        return rows, texts, ReplacedToken(weight=recipe.generator.weight)
    return rows, texts, language_of(recipe, model)
