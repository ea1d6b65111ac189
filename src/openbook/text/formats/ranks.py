"""Rank files, as tiktoken reads them: a line for each token, its bytes in base64 and its rank, which is its id.

    IQ== 0
    Ig== 1

The file does not say how text is split nor which tokens are special. For the published encodings that is known, and
they are recognised by the hash of their ranks; for any other file the caller says it.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openbook.errors import TokenizerError
from openbook.text.folder import Added, Settings
from openbook.text.formats import byte_level
from openbook.text.formats.found import MOST, Asked, Found, State, added_tokens, damaged, read_bytes
from openbook.text.formats.merges import in_order, last_pairs

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Published:
    """What the publisher of an encoding says beside its ranks."""

    pattern: str
    specials: Mapping[str, int]
    roles: Mapping[str, str] = field(default_factory=dict)


_LLAMA3_SPECIALS = {  # those that are the same in every edition of these ranks
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
}
_END = {"eos": "<|endoftext|>"}
# By the SHA-256 of the ranks in order, written as in the published files.
PUBLISHED = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": Published(
        _GPT2, {"<|endoftext|>": 50256}, _END
    ),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": Published(
        _GPT2, {"<|endoftext|>": 50256}, _END
    ),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": Published(
        _CL100K,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        _END,
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": Published(
        _O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}, _END
    ),
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": Published(
        _LLAMA3, _LLAMA3_SPECIALS, {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    ),
}


def is_ranks(head: bytes) -> bool:
    """Whether a file that begins with `head` is a rank file: base64, a space, digits."""
    token, space, rest = head.lstrip().partition(b"\n")[0].strip().partition(b" ")
    try:
        return bool(space) and rest.isdigit() and bool(binascii.a2b_base64(token, strict_mode=True))
    except binascii.Error:
        return False


def read(path: Path, asked: Asked) -> Found:
    """Read a rank file."""
    data = read_bytes(path)
    ranks = parse(data, path)
    known = PUBLISHED.get(fingerprint(ranks)) or PUBLISHED.get(hashlib.sha256(data).hexdigest())
    pattern = asked.pattern or (known.pattern if known else None)
    if pattern is None:
        raise TokenizerError(
            f"'{path}' holds {len(ranks)} ranks of none of the encodings known here, and a rank file does not say how "
            "text is split before it is merged. Give `pattern=` (the regular expression, in tiktoken's syntax), and "
            "`specials=` (content → id) where there are special tokens."
        )
    specials = asked.specials if asked.specials is not None else known.specials if known else {}
    roles = {role: Added(content=name) for role, name in (known.roles if known else {}).items() if name in specials}
    return Found(state=from_ranks(ranks, pattern, specials, path), settings=Settings(roles=roles))


def parse(data: bytes, path: Path) -> dict[bytes, int]:
    """Token → rank. TokenizerError: a line that is none, a token or a rank twice, a byte that is missing."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            value = binascii.a2b_base64(token, strict_mode=True)
            if not value or not rank.isdigit() or len(rank) > 9:
                raise ValueError
        except ValueError as error:
            raise damaged(path, f"line {number} is no token in base64 with its rank: {line[:60]!r}") from error
        if value in ranks:
            raise damaged(path, f"line {number} has the token {value!r:.60} a second time")
        ranks[value] = int(rank)
        if len(ranks) > MOST:
            raise damaged(path, f"it has more than {MOST} tokens")
    check(ranks, path)
    return ranks


def check(ranks: Mapping[bytes, int], path: Path) -> None:
    """TokenizerError when two tokens have one rank, or a byte has none: then there is text without ids."""
    if len(set(ranks.values())) < len(ranks):
        raise damaged(path, "two tokens have the same rank")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise damaged(path, f"{len(missing)} of the 256 bytes have no rank, 0x{missing[0]:02X} among them")


def fingerprint(ranks: Mapping[bytes, int]) -> str:
    """The hash of the ranks in order, as the published files write them."""
    hashed = hashlib.sha256()
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        hashed.update(b64encode(token) + b" %d\n" % rank)
    return hashed.hexdigest()


def from_ranks(
    ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int], path: Path, shift: int = 0
) -> State:
    """The state in which the id of a token is its rank + `shift`, and ids are tiktoken's."""
    vocab = {byte_level.spell(token): rank + shift for token, rank in ranks.items()}
    taken = {number: token for token, number in vocab.items()}
    for content, number in specials.items():
        if not content or number < 0 or taken.get(number, content) != content or vocab.get(content, number) != number:
            raise TokenizerError(
                f"The special token {content!r} cannot have the id {number}: that id or that name is a token's in "
                f"'{path}'. Give it another."
            )
        vocab[content] = taken[number] = number  # type: ignore[assignment]
    pairs = last_pairs((token for token in ranks if len(token) > 1), ranks, path)
    merges = [(byte_level.spell(left), byte_level.spell(right)) for left, right in in_order(pairs, ranks, path)]
    patterns = (byte_level.translate(pattern, path),)
    return byte_level.pipeline(vocab, merges, patterns=patterns, whole_first=True, added=added_tokens(specials))
