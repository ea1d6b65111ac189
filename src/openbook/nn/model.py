"""A whole model: embedding, stack, heads, and the encoder of an encoder-decoder.

`model(ids)` gives logits [B,T,V] of the language head (or of the first head there is); `hidden` stops before the head,
`encode` runs an encoder, `encode_source` the source side. What is done to a loaded model is recorded in `rewrites`.
Symbols: see shapes.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openbook.errors import InputError, Refusal
from openbook.nn import spec
from openbook.nn.ahead import AheadHead, AheadStep, shifted
from openbook.nn.embed import Embedding
from openbook.nn.heads import ClassHead, LanguageHead, MixHead, PoolerHead, pooled
from openbook.nn.linear import Linear
from openbook.nn.marks import Marks, mark, usual
from openbook.nn.norm import Normalise
from openbook.nn.routing import Decision, expert_choice
from openbook.nn.stack import Tower
from openbook.nn.state import Cache, Context, Declaration, Dense, Source, State, count_positions

UNSERVED = (
    "Experts of this model choose their tokens among all rows, so what it says to one text depends on the others: "
    "it can be trained and measured, not served. Use routing.choice='token' for a model that generates."
)


class Stored(NamedTuple):
    """A model before `nn/serving.py`: its logical parameters, in order, what it computed in, which take gradients.

    The parameters are the objects themselves, so that an optimiser that knows them goes on with a restored model; those
    that are kept in another form meanwhile hold no numbers.
    """

    parameters: dict[str, nn.Parameter]
    compute: torch.dtype | None
    trainable: frozenset[str]


class SourceModel(nn.Module):
    """The encoder of an encoder-decoder; without an embedding of its own it shares the decoder's."""

    def __init__(self, embed: Embedding | None, stack: Tower) -> None:
        super().__init__()
        self.embed = embed
        self.stack = stack


class LanguageModel(nn.Module):
    """The module that a `spec.Model` says."""

    def __init__(
        self,
        model: spec.Model,
        embed: Embedding,
        stack: Tower,
        heads: dict[str, nn.Module],
        source: SourceModel | None,
    ) -> None:
        super().__init__()
        self.spec = model
        self.embed = embed
        width = model.stack.dim
        narrow = model.embed.dim * model.embed.copies
        self.widen = Linear(narrow, width, bias=True) if narrow != width else None
        self.source = source
        self.stack = stack
        self.heads = nn.ModuleDict(heads)
        self.compute_dtype: torch.dtype | None = None  # None: that of the parameters
        self.rewrites: list[str] = []  # what was done to it since it was built, in order
        self.pushed = 0  # how often weights were pushed into it (nn/serving.py)
        self.stored: Stored | None = None  # how its parameters were kept before they took their form for serving
        self.config: dict[str, Any] = {}  # the config.json it came from
        self.states: tuple[Declaration, ...] = stack.number()
        if source is not None:
            source.stack.number()
        self.trains_only = expert_choice(model)  # a token's logits depend on the rows beside it

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in."""
        return self.compute_dtype or self.embed.tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed.tokens.weight.device

    @property
    def patterns(self) -> tuple[spec.Pattern, ...]:
        """The distinct attention patterns of the (decoder) stack, in the order of `scores.mask`."""
        return self.stack.patterns

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
        source: Tensor | None = None,
        source_segments: Tensor | None = None,
        encoded: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        length: int | None = None,
        routers: list[Decision] | None = None,
        marks: Tensor | None = None,
    ) -> Tensor:
        """Ids [B,T] int64 → logits [B,T,V]; with `rows` [N], indices into the flattened B·T tokens, → [N,V].

        `segments` [B,T]: 0 is padding, tokens see only their own number; None: each row is one text without padding.
        `positions` [B,T] default to counting from 0 in each segment. An encoder-decoder takes `source` ids [B,S] or
        `encoded` [B,S,D] from `encode_source`, and `source_segments` [B,S]. `length` fixes length-dependent rotary
        scaling. A list given as `routers` is filled with what the router of each MoE layer decided. `marks` [B,T] is
        true for the tokens that a pattern treats by themselves: its prefix, or its global tokens; None: what the task
        marks.
        """
        if source is not None:
            encoded = self.encode_source(source, source_segments, routers)
        hidden = self.hidden(
            ids,
            positions=positions,
            segments=segments,
            types=types,
            encoded=encoded,
            source_segments=source_segments,
            cache=cache,
            length=length,
            routers=routers,
            marks=marks,
        )
        if rows is not None:
            hidden = hidden.flatten(0, 1)[rows]
        return self.head(hidden)

    def hidden(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
        encoded: Tensor | None = None,
        source_segments: Tensor | None = None,
        cache: Cache | None = None,
        length: int | None = None,
        routers: list[Decision] | None = None,
        marks: Tensor | None = None,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        """Ids [B,T] → the last hidden states [B,T,D], after the final norm. Arguments as in `forward`.

        A list given as `layers` is filled with the embedding and each block's output, [B,T,D] each.
        """
        self._check(ids, segments=segments, positions=positions, types=types, marks=marks)
        if cache is not None and self.trains_only:
            raise Refusal(UNSERVED)
        if cache is None:
            state: State = _dense(ids, positions, segments, self.stack, length, self._marks(ids, segments, marks))
        else:
            state = cache.step(ids.shape[0], ids.shape[1], positions, segments, marks)
        seen = None
        if self.source is not None:
            if encoded is None and (cache is None or not cache.brings_sources):
                raise InputError("This is an encoder-decoder: give it `source` ids or `encoded` states.")
            seen = _source_visible(source_segments, segments)
        elif encoded is not None:
            raise InputError("This model has no encoder: `source` and `encoded` mean nothing to it.")
        memory = None if encoded is None else Source(encoded, seen)
        return self._run(self.embed, self.stack, ids, types, state, memory, routers, layers)

    def ahead(
        self,
        ids: Tensor,
        hidden: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        length: int | None = None,
        routers: list[Decision] | None = None,
    ) -> list[Tensor]:
        """Hidden states [B,T,D] of whole rows → those of every depth of a multi-token head.

        By `head`, place t of the first says token t + 2, of the second t + 3, where there is one in its segment.
        """
        if "ahead" not in self.heads:
            raise Refusal("This model has no head that predicts tokens beyond the next one.")
        head = self.heads["ahead"]
        assert isinstance(head, AheadHead)
        state = _dense(ids, positions, segments, self.stack, length)
        ctx = self._context(self.stack, state, None, routers)
        found: list[Tensor] = []
        for depth, step in enumerate(head.steps, start=1):
            assert isinstance(step, AheadStep)
            token = self._embedded(self.embed, shifted(ids, depth, segments, 0), None, state)
            hidden = step(token, hidden, ctx)
            found.append(hidden)
        return found

    def encode(
        self,
        ids: Tensor,
        *,
        segments: Tensor | None = None,
        types: Tensor | None = None,
        marks: Tensor | None = None,
    ) -> Tensor:
        """An encoder's hidden states, ids [B,T] → [B,T,D]; of a model with a Mix, what that makes of all layers.

        `marks`: as in `forward`.
        """
        if self.source is not None:
            return self.encode_source(ids, segments)
        if "mix" in self.heads:
            layers: list[Tensor] = []
            self.hidden(ids, segments=segments, types=types, marks=marks, layers=layers)
            mixed = self.heads["mix"]
            assert isinstance(mixed, MixHead)
            return mixed(layers)
        return self.hidden(ids, segments=segments, types=types, marks=marks)

    def encode_source(
        self, ids: Tensor, segments: Tensor | None = None, routers: list[Decision] | None = None
    ) -> Tensor:
        """The source side of an encoder-decoder, ids [B,S] → [B,S,D]."""
        if self.source is None:
            raise InputError("This model has no encoder: `source` means nothing to it.")
        self._check(ids, segments=segments)
        embed = self.embed if self.source.embed is None else self.source.embed
        state = _dense(ids, None, segments, self.source.stack, None)
        return self._run(embed, self.source.stack, ids, None, state, None, routers)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of the language head; of the first class head where there is none."""
        if "language" in self.heads:
            head = self.heads["language"]
            assert isinstance(head, LanguageHead)
            return head(hidden, self.embed.tokens.weight)
        names = [name for name, head in self.heads.items() if isinstance(head, ClassHead)]
        if not names:
            raise Refusal("This model has no head that gives logits; use `encode`. Its heads: " + str(list(self.heads)))
        return self.classify(hidden, names[0])

    def classify(self, hidden: Tensor, name: str = "classes", segments: Tensor | None = None) -> Tensor:
        """Hidden states [B,T,D] → logits [B,count], or [B,T,count] for a head over tokens."""
        head = self.heads[name]
        assert isinstance(head, ClassHead)
        match head.spec.over:
            case "tokens":
                return head(hidden)
            case "pooled":
                return head(self.pool(hidden))
            case "first":
                return head(hidden[:, 0])
            case "mean" | "last" as way:
                return head(pooled(hidden, None if segments is None else segments != 0, way))

    def pool(self, hidden: Tensor) -> Tensor:
        """The pooler's vector of each row, [B,T,D] → [B,D]."""
        if "pooler" not in self.heads:
            raise Refusal("This model has no pooler.")
        pooler = self.heads["pooler"]
        assert isinstance(pooler, PoolerHead)
        return pooler(hidden)

    def _run(
        self,
        embed: Embedding,
        stack: Tower,
        ids: Tensor,
        types: Tensor | None,
        state: State,
        memory: Source | None,
        routers: list[Decision] | None,
        layers: list[Tensor] | None = None,
    ) -> Tensor:
        ctx = self._context(stack, state, memory, routers)._replace(layers=layers)
        return stack(self._embedded(embed, ids, types, state), ctx)

    def _embedded(self, embed: Embedding, ids: Tensor, types: Tensor | None, state: State) -> Tensor:
        x = embed(ids, state.positions, state.longest, types, self.dtype)  # [B,T,D]
        return x if self.widen is None else self.widen(x)

    def _context(self, stack: Tower, state: State, memory: Source | None, routers: list[Decision] | None) -> Context:
        rotary = tuple(table.rows(state.positions, state.longest, state.length, self.dtype) for table in stack.tables)
        marks = state.marks if isinstance(state, Dense) else None
        return Context(state, rotary, memory, routers, marks)

    def _marks(self, ids: Tensor, segments: Tensor | None, flags: Tensor | None) -> Marks | None:
        """The marked tokens: those that the caller names, else those that the task does."""
        if flags is None and self.spec.marks is not None:
            whole = torch.ones_like(ids) if segments is None else segments
            flags = usual(self.spec.marks, ids, count_positions(whole))
        return None if flags is None else mark(flags, segments)

    def _check(self, ids: Tensor, **beside: Tensor | None) -> None:
        if ids.ndim != 2 or ids.is_floating_point():
            raise InputError(f"`ids` must be whole numbers [B,T]: got {ids.dtype} {tuple(ids.shape)}.")
        for name, value in beside.items():
            if value is not None and value.shape != ids.shape:
                raise InputError(f"`{name}` must have the shape of `ids` {tuple(ids.shape)}: got {tuple(value.shape)}.")


def _dense(
    ids: Tensor,
    positions: Tensor | None,
    segments: Tensor | None,
    stack: Tower,
    length: int | None,
    marks: Marks | None = None,
) -> Dense:
    if positions is not None:
        longest = int(positions.max()) + 1
    else:
        longest = ids.shape[1]
        if segments is None:
            positions = torch.arange(longest, device=ids.device).expand(ids.shape)
        else:
            positions = count_positions(segments)
    return Dense(positions, segments, stack.patterns, longest, length, marks)


def _source_visible(source: Tensor | None, target: Tensor | None) -> Tensor | None:
    """Which source tokens a target token sees: its own segment's, or all that are no padding."""
    if source is None:
        return None
    real = (source != 0)[:, None, None, :]  # [B,1,1,S]
    if target is None or int(source.max()) <= 1:
        return real
    return real & (target[:, None, :, None] == source[:, None, None, :])


def norms(model: LanguageModel) -> list[Normalise]:
    """All norms, in order."""
    return [module for module in model.modules() if isinstance(module, Normalise)]
