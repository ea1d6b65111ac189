"""Giving a model another tokenizer: each new token begins with what the model knows of its text.

A token that both vocabularies have keeps its row; any other is the mean of the rows of its pieces under the old
tokenizer (fast vocabulary transfer, Gee et al. 2022, §3; as WECHSEL, Minixhofer et al. 2022, but without bilingual
similarities). Tokens are the same when they stand for the same bytes: `Ġthe`, `▁the` and WordPiece's `the` are ` the`,
and `##ing` is `ing`. Special tokens are the same when they have the same role, or else the same name.
"""

from __future__ import annotations

from openbook.text.surgery.change import Change
from openbook.text.tokenizer import Tokenizer

ROLES = ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
STANDS_FOR = {"cls": "bos", "bos": "cls", "sep": "eos", "eos": "sep"}  # what begins and what ends a text


def transplant(donor: Tokenizer, tokenizer: Tokenizer) -> Change:
    """`tokenizer`, with rows made from those of a model that was trained with `donor`."""
    special = _specials(donor, tokenizer)
    spelled: dict[bytes, int] = {}
    for number in range(donor.vocab):
        if number not in donor.specials.values() and (data := donor.token_bytes(number)):
            spelled.setdefault(data, number)
    prefixed = _prefixes(donor)
    rows: list[tuple[int, ...]] = []
    for number in range(tokenizer.vocab):
        if number in special:
            rows.append(special[number])
            continue
        data = tokenizer.token_bytes(number)
        rows.append((spelled[data],) if data in spelled else _pieces(donor, data, spelled, prefixed))
    return Change(tokenizer, tuple(rows), donor.vocab)


def _specials(donor: Tokenizer, tokenizer: Tokenizer) -> dict[int, tuple[int, ...]]:
    """The rows of special tokens, by role, by name, or by nothing."""
    theirs, ours = _roles(donor), _roles(tokenizer)
    found: dict[int, tuple[int, ...]] = {}
    for name, number in tokenizer.specials.items():
        roles = [role for role in ROLES if ours.get(role) == number]
        roles += [STANDS_FOR[role] for role in roles if role in STANDS_FOR]
        same = next((theirs[role] for role in roles if role in theirs), donor.specials.get(name))
        found[number] = () if same is None else (same,)
    return found


def _roles(tokenizer: Tokenizer) -> dict[str, int]:
    roles = {
        "bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad, "unk": tokenizer.unk,
        "mask": tokenizer.mask, "sep": tokenizer.sep, "cls": tokenizer.cls,
    }  # fmt: skip
    return {role: number for role, number in roles.items() if number is not None}


def _prefixes(donor: Tokenizer) -> bool:
    """Whether the donor reads a text as if a space stood before it."""
    ids = donor.encode("a")
    return bool(ids) and donor.token_bytes(ids[0]).startswith(b" ")


def _pieces(donor: Tokenizer, data: bytes, spelled: dict[bytes, int], prefixed: bool) -> tuple[int, ...]:
    """The donor's ids for these bytes; byte by byte where they are no text; none where it has no token for them."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        single = [spelled.get(bytes([byte])) for byte in data]
        return tuple(number for number in single if number is not None)
    if prefixed and text.startswith(" "):
        text = text[1:]
    return tuple(number for number in donor.encode(text) if number != donor.unk)
