"""Writing with models that see both ways (BERT and its like): fill-in, and generation by iterative mask prediction.

`fill` says what could stand at each mask, every mask on its own (Devlin et al. 2018, §3.1). `unmask` fills all masks of
a text in a few steps: all are predicted at once, the most confident predictions stay, the rest is predicted again in
the light of them (Ghazvininejad et al. 2019, Mask-Predict, arXiv 1904.09324; what stays is final and the schedules are
as in Chang et al. 2022, MaskGIT, §3.2, arXiv 2202.04200). A text to be written from nothing is a row of masks.

After step t of N, of M masks remain       linear: M·(1 - t/N)       cosine: M·cos(π/2 · t/N)       at least one goes

What a text gets depends on it and its seed alone, not on its batch mates. Symbols: B texts, T tokens, M masks, V ids.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openbook.errors import InputError, OpenbookError, Refusal
from openbook.generate import draw, processors
from openbook.generate.encode import by_length
from openbook.generate.feed import padded, quiet
from openbook.generate.requests import check_ids
from openbook.nn.model import LanguageModel

Schedule = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Blank:
    """What could stand at one mask: its place in the text, and the likeliest ids with probabilities, best first."""

    place: int
    top: tuple[tuple[int, float], ...]


def fill(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    mask: int,
    *,
    top: int = 5,
    banned: Sequence[int] = (),
    batch: int = 64,
) -> list[list[Blank]]:
    """The `top` likeliest ids at every `mask` id of every text (lists of ids). `banned` ids are left out.

    Raises `Refusal` for a model that is not of this kind, `InputError` for a text without a mask or beyond the context.
    """
    texts = _check(model, texts, mask, banned, batch)
    vocab = model.spec.embed.vocab
    if not 1 <= top <= vocab - len(set(banned)):
        raise InputError(f"`top` must be from 1 to {vocab - len(set(banned))}: got {top}.")
    found: dict[int, list[Blank]] = {}
    with quiet(model):
        for numbers in by_length([len(text) for text in texts], rows=batch):
            part = [texts[number] for number in numbers]
            places = [[place for place, i in enumerate(text) if i == mask] for text in part]
            chances = _predict(model, part, places, banned).softmax(-1).topk(top, dim=-1)
            rows = iter(zip(chances.indices.tolist(), chances.values.tolist(), strict=True))
            for number, blanks in zip(numbers, places, strict=True):
                tops = [next(rows) for _ in blanks]
                pairs = [tuple(zip(ids, values, strict=True)) for ids, values in tops]
                found[number] = [Blank(place, pair) for place, pair in zip(blanks, pairs, strict=True)]
    return [found[number] for number in range(len(texts))]


def unmask(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    mask: int,
    *,
    steps: int = 10,
    temperature: float = 0.0,
    schedule: Schedule = "cosine",
    seed: int | None = None,
    banned: Sequence[int] = (),
    batch: int = 64,
) -> list[list[int]]:
    """The texts with every `mask` id replaced, in at most `steps` passes.

    At `temperature` 0 each prediction is the likeliest id; above, it is drawn. Confidence is the probability of what
    was predicted. `banned` ids (special ids, say) are never written, the mask itself neither. `seed` as in `Sampling`.
    """
    written = _check(model, texts, mask, banned, batch)
    if steps < 1:
        raise InputError(f"`steps` must be at least 1: got {steps}.")
    if not 0 <= temperature < math.inf:
        raise InputError(f"`temperature` must be a number, at least 0: got {temperature!r}.")
    if schedule not in ("cosine", "linear"):
        raise InputError(f"`schedule` must be 'cosine' or 'linear': got {schedule!r}.")
    with quiet(model):
        for start in range(0, len(written), batch):
            part = written[start : start + batch]
            streams = [draw.stream(secrets.randbits(64) if seed is None else seed) for _ in part]
            _write(model, part, mask, steps, temperature, schedule, streams, [*banned, mask])
    return written


def remaining(masks: int, step: int, steps: int, schedule: Schedule) -> int:
    """How many of `masks` are left after step number `step` (from 1) of `steps`; 0 after the last."""
    share = step / steps
    left = math.cos(math.pi / 2 * share) if schedule == "cosine" else 1 - share
    return 0 if step >= steps else min(masks - 1, math.floor(masks * left + 1e-9))


def _write(
    model: LanguageModel,
    texts: list[list[int]],
    mask: int,
    steps: int,
    temperature: float,
    schedule: Schedule,
    streams: Sequence[int],
    banned: Sequence[int],
) -> None:
    """Fills the masks of some texts, in place."""
    totals = [text.count(mask) for text in texts]
    for step in range(1, steps + 1):
        open_ = [number for number, text in enumerate(texts) if mask in text]
        if not open_:
            return
        places = [[place for place, i in enumerate(texts[number]) if i == mask] for number in open_]
        logits = _predict(model, [texts[number] for number in open_], places, banned)
        owners = [number for number, blanks in zip(open_, places, strict=True) for _ in blanks]
        flat = [place for blanks in places for place in blanks]
        if temperature == 0:
            ids = draw.argmax(logits)
        else:
            numbers = [
                draw.uniform(streams[number], place * steps + step) for number, place in zip(owners, flat, strict=True)
            ]
            ids = draw.categorical(processors.temperature(logits, temperature), numbers)
        if int(ids.min()) < 0:
            raise OpenbookError(f"The model's logits are not numbers, or `banned` leaves no id, at step {step}.")
        sure = logits.log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)
        predicted = list(zip(sure.tolist(), flat, ids.tolist(), strict=True))
        for number, blanks in zip(open_, places, strict=True):
            own, predicted = predicted[: len(blanks)], predicted[len(blanks) :]
            left = min(remaining(totals[number], step, steps, schedule), len(own) - 1)
            own.sort(key=lambda guess: (-guess[0], guess[1]))
            for _, place, token in own[: len(own) - left]:
                texts[number][place] = token


def _predict(
    model: LanguageModel, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]], banned: Sequence[int]
) -> Tensor:
    """Logits [M,V] in float32 at the places of each text, text after text."""
    ids, segments = padded(texts, model.device)
    hidden = model.hidden(ids, segments=segments)
    width = ids.shape[1]
    index = [row * width + place for row, blanks in enumerate(places) for place in blanks]
    logits = model.head(hidden.flatten(0, 1)[torch.tensor(index, device=ids.device)]).float()
    return processors.ban(logits, torch.tensor(list(banned), device=ids.device)) if banned else logits


def _check(
    model: LanguageModel, texts: Sequence[Sequence[int]], mask: int, banned: Sequence[int], batch: int
) -> list[list[int]]:
    """The texts as lists of plain ids, once all is in order."""
    if model.spec.language is None:
        raise Refusal("This model has no language head: it cannot fill in. Its heads: " + ", ".join(model.heads) + ".")
    if model.spec.causal or model.spec.source is not None:
        raise Refusal("This model writes from left to right and cannot fill in: use generation.")
    if batch < 1:
        raise InputError(f"`batch` must be at least 1: got {batch}.")
    vocab, context = model.spec.embed.vocab, model.spec.context
    check_ids("`mask`", [mask], vocab)
    check_ids("`banned`", banned, vocab)
    checked = [check_ids(f"text {number}", text, vocab) for number, text in enumerate(texts)]
    for number, text in enumerate(checked):
        if mask not in text:
            raise InputError(f"Text {number} has no mask (id {mask}): there is nothing to fill in.")
        if context is not None and len(text) > context:
            raise InputError(
                f"Text {number} has {len(text)} tokens and the context of this model holds {context}: shorten it by "
                f"{len(text) - context}."
            )
    return checked
