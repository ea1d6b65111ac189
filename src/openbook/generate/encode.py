"""What is read in one pass: embeddings, classes, scores of pairs. Texts are lists of ids.

    by_length     texts of alike length share a pass, within a budget of tokens; at most 1/8 of a pass is padding
    embed         hidden states → one vector per text: as the model's sentence head does, or pooled, cut, normalised
    classify      logits of a class head: one row per text, or one per token
    score         a head with one label: a number per text (or pair: one text, with `types` 0 and 1)

Results are in the order of the texts; a text too long for the model is an error, never cut. What a text gets is a
function of it alone: padding is masked. The last bit may still depend on the mates, since a float32 product of
matrices adds up in an order that depends on their number (within 1e-6 of the largest value); `exact` reads every text
alone, bit for bit the same in any company.

Works for models that see both ways, for the encoder of an encoder-decoder, and for causal ones (their last token has
seen all). Cutting a vector to its first `dimensions` is for models trained so (Kusupati et al. 2022, Matryoshka
Representation Learning, arXiv 2205.13147). Symbols: N texts, B texts of a pass, T tokens, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from openbook.errors import InputError, Refusal, TooLong
from openbook.generate.feed import padded, quiet
from openbook.generate.requests import check_ids
from openbook.nn.heads import ClassHead, SentenceHead, pooled
from openbook.nn.model import LanguageModel
from openbook.nn.spec import Pooled

BUDGET = 8192  # tokens of a pass
SPARE = 8  # a text is padded by at most 1/8 of its length

Texts = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the hidden states of a text become one vector.

    by: "mean" of all tokens, the first ("cls"), the "last", or another of `spec.Sentence`. dimensions: only the first
    so many; None: all. normalise: to length 1 (after the cut).
    """

    by: Pooled = "mean"
    normalise: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.by not in get_args(Pooled):
            raise InputError(f"`by` must be one of {', '.join(map(repr, get_args(Pooled)))}: got {self.by!r}.")
        count = self.dimensions
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise InputError(f"`dimensions` must be a whole number, at least 1: got {count!r}.")


def by_length(
    lengths: Sequence[int], budget: int = BUDGET, *, rows: int | None = None, exact: bool = False
) -> list[list[int]]:
    """The places of texts that are read together, the longest first: at most `budget` tokens (padding included) and
    `rows` texts; with `exact` one."""
    if budget < 1:
        raise InputError(f"`budget` must be at least 1 token: got {budget}.")
    most = 1 if exact else len(lengths) if rows is None else rows
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    passes: list[list[int]] = []
    for place in order:
        if passes and len(passes[-1]) < most:
            longest = lengths[passes[-1][0]]
            near = (longest - lengths[place]) * SPARE <= lengths[place]
            if near and longest * (len(passes[-1]) + 1) <= budget:
                passes[-1].append(place)
                continue
        passes.append([place])
    return passes


def embed(
    model: LanguageModel,
    texts: Texts,
    pooling: Pooling | None = None,
    *,
    types: Texts | None = None,
    budget: int = BUDGET,
    exact: bool = False,
) -> Tensor:
    """One vector per text, float32 [N, D or `dimensions`] on the host.

    Without `pooling` it is what the model's sentence head makes of a text; where it has none, the normalised mean.
    """
    head = _sentence(model, pooling)
    if head is not None:
        return _by_head(model, head, texts, types, budget, exact)
    pooling = pooling or Pooling()
    width = model.spec.reader.width
    if pooling.dimensions is not None and pooling.dimensions > width:
        raise InputError(f"`dimensions` must be at most {width}, what this model has: got {pooling.dimensions}.")
    if pooling.by == "cls" and model.spec.causal and model.spec.source is None:
        raise InputError("`by`='cls' is for models that see both ways: the first token of this one sees only itself.")
    found = torch.empty(len(texts), pooling.dimensions or width)

    def take(places: list[int], hidden: Tensor, lengths: list[int]) -> None:
        found[places] = _normalised(pooled(hidden.float(), _real(hidden, lengths), pooling.by), pooling).cpu()

    _read(model, texts, types, budget, exact, take)
    return found


def _sentence(model: LanguageModel, pooling: Pooling | None) -> SentenceHead | None:
    head = model.heads["sentence"] if pooling is None and "sentence" in model.heads else None
    return head if isinstance(head, SentenceHead) else None


def longest(model: LanguageModel, pooling: Pooling | None = None) -> int | None:
    """Tokens that a text may have to be embedded, where that is less than the context."""
    head = _sentence(model, pooling)
    return None if head is None else head.spec.longest


def _by_head(
    model: LanguageModel, head: SentenceHead, texts: Texts, types: Texts | None, budget: int, exact: bool
) -> Tensor:
    """What the sentence head makes of each text, float32 [N,W]."""
    check(model, texts, head.spec.longest)
    found = torch.empty(len(texts), head.width)

    def take(places: list[int], hidden: Tensor, lengths: list[int]) -> None:
        found[places] = head(hidden.float(), _real(hidden, lengths)).cpu()

    _read(model, texts, types, budget, exact, take)
    return found


def _real(hidden: Tensor, lengths: Sequence[int]) -> Tensor:
    """Which tokens are no padding, bool [B,T]."""
    counts = torch.tensor(lengths, device=hidden.device)
    return torch.arange(hidden.shape[1], device=hidden.device) < counts.unsqueeze(1)


def _normalised(vectors: Tensor, pooling: Pooling) -> Tensor:
    if pooling.dimensions is not None:
        vectors = vectors[:, : pooling.dimensions]
    return F.normalize(vectors, dim=-1) if pooling.normalise else vectors


def classify(
    model: LanguageModel,
    texts: Texts,
    *,
    types: Texts | None = None,
    head: str | None = None,
    budget: int = BUDGET,
    exact: bool = False,
) -> list[Tensor]:
    """Logits of a class head for each text, float32 on the host: [count], or [T,count] for a head over tokens.

    head: its name; None: the only one, or the first.
    """
    name, classes = _head(model, head)
    found: dict[int, Tensor] = {}

    def take(places: list[int], hidden: Tensor, lengths: list[int]) -> None:
        logits = model.classify(hidden, name, _real(hidden, lengths).long()).float().cpu()
        for place, line, length in zip(places, logits, lengths, strict=True):
            found[place] = line[:length].clone() if classes.spec.over == "tokens" else line.clone()

    _read(model, texts, types, budget, exact, take)
    return [found[place] for place in range(len(texts))]


def score(
    model: LanguageModel,
    texts: Texts,
    *,
    types: Texts | None = None,
    sigmoid: bool = False,
    budget: int = BUDGET,
    exact: bool = False,
) -> list[float]:
    """A number for each text or pair, from a head with one label. `sigmoid`: as a chance between 0 and 1."""
    _, head = _head(model, None)
    if head.spec.count != 1 or head.spec.over == "tokens":
        raise Refusal(
            f"Scores need a head with one label for each text: this model's has {head.spec.count} over "
            f"{head.spec.over}. Use `classify`."
        )
    logits = torch.cat(classify(model, texts, types=types, budget=budget, exact=exact) or [torch.empty(0)])
    return (logits.sigmoid() if sigmoid else logits).tolist()


def _head(model: LanguageModel, name: str | None) -> tuple[str, ClassHead]:
    heads = {key: head for key, head in model.heads.items() if isinstance(head, ClassHead)}
    if not heads:
        raise Refusal("This model has no class head: it cannot classify. Its heads: " + ", ".join(model.heads) + ".")
    if name is not None and name not in heads:
        raise InputError(f"This model has no class head {name!r}. It has: {', '.join(heads)}.")
    key = next(iter(heads)) if name is None else name
    return key, heads[key]


# Takes what a pass read: places of the texts, hidden states [B,T,D], lengths.
Take = Callable[[list[int], Tensor, list[int]], None]


def _read(model: LanguageModel, texts: Texts, types: Texts | None, budget: int, exact: bool, take: Take) -> None:
    """Checks and reads the texts, pass by pass."""
    rows = check(model, texts)
    kinds = None if types is None else _checked_types(model, rows, types)
    with quiet(model):
        for places in by_length([len(row) for row in rows], budget, exact=exact):
            ids, segments = padded([rows[place] for place in places], model.device)
            sorts = None if kinds is None else padded([kinds[place] for place in places], model.device)[0]
            hidden = model.encode(ids, segments=segments, types=sorts)  # [B,T,D]
            take(places, hidden, [len(rows[place]) for place in places])


def check(model: LanguageModel, texts: Texts, most: int | None = None) -> list[list[int]]:
    """The texts, each of known ids and none empty. `TooLong` for one that the context, or `most`, does not hold."""
    vocab = model.spec.reads.vocab
    rows = [check_ids(f"text {number}", text, vocab) for number, text in enumerate(texts)]
    limits = ((most, "this sentence encoder takes"), (model.spec.context, "the context of this model holds"))
    for number, row in enumerate(rows):
        if not row:
            raise InputError(f"Text {number} is empty: give at least one id.")
        for limit, said in limits:
            if limit is not None and len(row) > limit:
                raise TooLong(
                    f"Text {number} has {len(row)} tokens and {said} {limit}: shorten it by {len(row) - limit}, or "
                    "split it."
                )
    return rows


def _checked_types(model: LanguageModel, rows: Texts, types: Texts) -> list[list[int]]:
    count = model.spec.embed.types
    if not count or model.spec.source is not None:
        raise InputError("This model has no segment types: leave out `types`.")
    if len(types) != len(rows):
        raise InputError(f"There are {len(rows)} texts and {len(types)} rows of `types`: give one for each.")
    kinds = [check_ids(f"`types` of text {number}", kind, count) for number, kind in enumerate(types)]
    for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if len(row) != len(kind):
            raise InputError(f"Text {number} has {len(row)} ids and {len(kind)} `types`: give one type for each id.")
    return kinds
