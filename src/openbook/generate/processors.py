"""What changes the logits of the next token, as pure functions, in the one order in which they run.

  0 the grammar            ids that it does not allow: `Sampler`, by `constraints.masks`
  1 add_bias               logit_bias
  2 repetition_penalty     over prompt and output
  3 output_penalties       frequency and presence, over output
  4 no_repeat_ngram        over prompt and output
  5 ban                    banned ids, and while the output is shorter than min_tokens, the ids that stop
  6 force                  the forced id, when this output index has one
    --- greedy stops here: argmax ---
  7 temperature
  8 top_k
  9 top_p
 10 min_p
 11 typical

This is the order of `transformers.generate` (5.23: sequence_bias, repetition_penalty, no_repeat_ngram_size,
bad_words_ids, min_new_tokens, forced ids, then temperature, top_k, top_p, min_p, typical_p), so that the same settings
give the same distribution; tests compare each function with its class there, ties included. Frequency and presence
penalties, which it lacks, are those of the OpenAI API, placed after the repetition penalty as vLLM does. The first six
need only exact arithmetic and run for greedy too; argmax is not changed by the last five.

Symbols: B rows, V vocabulary. Logits are float32 [B,V]; -inf is an impossible id. Functions return new tensors or the
same one unchanged, never write into their argument, and touch each row alone.

Papers: repetition penalty, Keskar et al. 2019 (arXiv 1909.05858); top-k, Fan et al. 2018 (1805.04833); top-p, Holtzman
et al. 2019 (1904.09751); typical, Meister et al. 2022 (2202.00666); min-p, Nguyen et al. 2024 (2407.01082).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

IMPOSSIBLE = -float("inf")
COLDEST = 1e-30  # temperatures below are taken as this: float32 logits stay finite, and it is greedy for every purpose


def add_bias(logits: Tensor, bias: Tensor) -> Tensor:
    """Adds `bias` [V] to every row of `logits` [B,V]."""
    return logits + bias


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides positive logits of seen ids by `penalty` and multiplies negative ones. `seen` bool [B,V]."""
    weakened = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, weakened, logits)


def output_penalties(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Subtracts `frequency` per occurrence and `presence` once for ids in the output. `counts` [B,V] of the output."""
    return logits - frequency * counts - presence * (counts > 0).to(logits.dtype)


def ban(logits: Tensor, ids: Tensor) -> Tensor:
    """Makes the ids [N] impossible in every row."""
    return logits.index_fill(1, ids, IMPOSSIBLE)


def ban_each(logits: Tensor, ids: Sequence[Collection[int]]) -> Tensor:
    """Makes each row's own ids impossible. `ids` holds one collection per row, on the host."""
    rows = [row for row, banned in enumerate(ids) for _ in banned]
    if not rows:
        return logits
    columns = [i for banned in ids for i in banned]
    place = torch.tensor([rows, columns], device=logits.device)
    return logits.index_put((place[0], place[1]), logits.new_tensor(IMPOSSIBLE))


def force(logits: Tensor, ids: Sequence[int | None]) -> Tensor:
    """Leaves one possible id (logit 0) in every row whose entry of `ids` is not None."""
    rows = [row for row, i in enumerate(ids) if i is not None]
    if not rows:
        return logits
    place = torch.tensor([rows, [i for i in ids if i is not None]], device=logits.device)
    return logits.index_fill(0, place[0], IMPOSSIBLE).index_put((place[0], place[1]), logits.new_zeros(()))


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divides by `value` > 0; the limit at 0 is greedy."""
    return logits / max(value, COLDEST)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the `k` >= 1 largest logits and everything equal to the k-th. A `k` beyond the vocabulary keeps all."""
    last = torch.topk(logits, min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < last, IMPOSSIBLE)


def top_p(logits: Tensor, p: float, outside: Tensor | None = None) -> Tensor:
    """Keeps the smallest set of most probable ids whose mass is at least `p`, and at least one id.

    Among equals at the edge the higher ids are kept: a stable sort, where `transformers` leaves it to the machine.
    `outside` [B,1] is the mass of ids less probable than all of `logits`: what `draw.narrow` left out.
    """
    ordered, order = torch.sort(logits, dim=-1, stable=True)
    mass = ordered.softmax(-1)
    below = mass.cumsum(-1) if outside is None else outside + ((1 - outside) * mass).cumsum(-1)
    remove = below <= 1 - p
    remove[..., -1] = False
    return logits.masked_fill(torch.zeros_like(remove).scatter(-1, order, remove), IMPOSSIBLE)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Removes ids less probable than `p` times the most probable one, which is always kept."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), IMPOSSIBLE)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Keeps the ids whose surprise is nearest to the entropy until their mass reaches `mass`, and at least one id."""
    surprise = -logits.log_softmax(-1)
    entropy = (surprise * (-surprise).exp()).nansum(-1, keepdim=True)
    distance = (surprise - entropy).abs()
    nearest, order = torch.sort(distance, dim=-1, stable=True)
    covered = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (covered < mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > nearest.gather(-1, last), IMPOSSIBLE)


class Ngrams:
    """Which ids would complete an n-gram that a sequence already has. Host only; O(1) a token.

    >>> seen = Ngrams(2); seen.extend([5, 6, 5]); seen.repeats()
    frozenset({6})
    """

    def __init__(self, n: int) -> None:
        assert n >= 1
        self.n = n
        self.tail: tuple[int, ...] = ()  # the last n-1 ids
        self.next: dict[tuple[int, ...], frozenset[int]] = {}

    def extend(self, ids: Sequence[int]) -> None:
        """Appends ids to the sequence."""
        for i in ids:
            if len(self.tail) == self.n - 1:
                self.next[self.tail] = self.next.get(self.tail, frozenset()) | {i}
            self.tail = (*self.tail, i)[-(self.n - 1) :] if self.n > 1 else ()

    def repeats(self) -> frozenset[int]:
        """The ids that must not come next."""
        return self.next.get(self.tail, frozenset())

    def copy(self) -> Ngrams:
        """An independent continuation of the same sequence (a beam that splits)."""
        other = Ngrams(self.n)
        other.tail, other.next = self.tail, dict(self.next)
        return other
