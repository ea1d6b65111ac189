"""From priorities of tokens to merges of pairs.

Tiktoken and SentencePiece say how eagerly a token is made (a rank, a score); of two neighbours any pair will do whose
join is a token. A tokenizer.json says which pairs are merged, in which order. One pair for each token is enough:

    While a token is being made out of its characters, nothing that reaches across its edge is merged, so the merges
    inside it are those that happen to it standing alone, in the same order, ties included (the leftmost first). So the
    last pair of a token is the same wherever it is made: the last pair of the token alone. Pairs that are never the
    last can be left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from openbook.errors import TokenizerError

Text = TypeVar("Text", str, bytes)
WORK = 400_000_000  # comparisons; published vocabularies need a fiftieth


def segment(parts: list[Text], priority: Mapping[Text, float], upto: int = 1) -> list[Text]:
    """Merge neighbours, the lowest priority first and the leftmost of equals, until `upto` parts are left or none fit.

    The whole of byte-pair encoding, with priorities on tokens.
    """
    found = [priority.get(left + right) for left, right in pairwise(parts)]
    while len(parts) > upto:
        best, at = None, -1
        for index, value in enumerate(found):
            if value is not None and (best is None or value < best):
                best, at = value, index
        if best is None:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del found[at]
        if at < len(found):
            found[at] = priority.get(parts[at] + parts[at + 1])
        if at:
            found[at - 1] = priority.get(parts[at - 1] + parts[at])
    return parts


def last_pairs(tokens: Iterable[Text], priority: Mapping[Text, float], where: object) -> dict[Text, tuple[Text, Text]]:
    """The pair that each token is made of; tokens that merging does not reach have none.

    TokenizerError: tokens so long that this would take minutes.
    """
    found: dict[Text, tuple[Text, Text]] = {}
    work = 0
    for token in tokens:
        work += len(token) ** 2
        if work > WORK:
            raise TokenizerError(
                f"The tokens in '{where}' are absurdly long: one has {len(token)} characters. Fetch the file again."
            )
        if len(token) == 2:
            found[token] = (token[:1], token[1:])
            continue
        parts = segment([token[i : i + 1] for i in range(len(token))], priority, upto=2)
        if len(parts) == 2:
            found[token] = (parts[0], parts[1])
    return found


def in_order(
    pairs: Mapping[Text, tuple[Text, Text]], priority: Mapping[Text, float], where: object
) -> list[tuple[Text, Text]]:
    """The pairs, the lowest priority first.

    Of tokens with one priority the leftmost in the text is made first, which no order of pairs can say; it matters
    where two such pairs share their middle part, and then the pair that stands left must come first. TokenizerError
    where that is a circle.
    """
    groups: dict[float, list[tuple[Text, Text]]] = defaultdict(list)
    for token, pair in pairs.items():
        groups[priority[token]].append(pair)
    ordered: list[tuple[Text, Text]] = []
    for value in sorted(groups):
        ordered += groups[value] if len(groups[value]) == 1 else _left_first(groups[value], where)
    return ordered


def _left_first(pairs: Sequence[tuple[Text, Text]], where: object) -> list[tuple[Text, Text]]:
    """Order `pairs` so that (a, b) comes before (b, c), as far as they differ."""
    starting: dict[Text, list[int]] = defaultdict(list)
    for number, (left, _) in enumerate(pairs):
        starting[left].append(number)
    after = [[other for other in starting.get(pair[1], ()) if other != number] for number, pair in enumerate(pairs)]
    waiting = [0] * len(pairs)
    for others in after:
        for other in others:
            waiting[other] += 1
    ready = [number for number, count in enumerate(waiting) if not count]
    ordered = []
    for number in ready:
        ordered.append(pairs[number])
        for other in after[number]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    if len(ordered) < len(pairs):
        raise TokenizerError(
            f"Several tokens in '{where}' have the same score, in a way that no list of merges can say exactly. Give "
            "the tokens different scores, in the order in which they should be made."
        )
    return ordered
