"""How numbers and code come apart: the pieces of probes that everybody can read.

Numbers: models add and compare them digit by digit, so it matters whether the pieces of 1234567 stand at places of the
decimal system (1|234|567, grouped from the right), begin anywhere (123|456|7, from the left), are single digits, or
follow the counts of a corpus (Singh and Strouse 2024, Tokenization counts).
Code: whether an indentation is one token or eight, whether operators stay whole, how names are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openbook.text.tokenizer import Tokenizer

NUMBERS = ("1", "12", "123", "1234", "2024", "3.14159", "1,000,000")
LONG_NUMBERS = ("4096", "81729", "1234567", "73205080", "57721566490")  # how these group says what the rule is
UNKNOWN = "[?]"
INDENTS = (4, 8, 12)  # spaces
OPERATORS = ("==", "!=", "<=", ">=", "->", "=>", "+=", "//", "**", "&&", "||", "::", "...")
NAMES = ("max_token_count", "maxTokenCount", "MAX_TOKENS", "__init__", "HTTPServer2")
SNIPPET = '''\
def fibonacci(count: int) -> list[int]:
    """The first `count` numbers."""
    found = [0, 1]
    while len(found) < count:
        if found[-1] > 1_000_000:
            raise ValueError(f"too large: {found[-1]!r}")
        found.append(found[-1] + found[-2])
    return found[:count]
'''


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The pieces of probes."""

    numbers: dict[str, list[str]]
    digits_per_token: float  # over NUMBERS without signs, and LONG_NUMBERS
    grouping: str  # see `grouping`
    indents: dict[int, int]  # spaces → tokens; 0: the tokenizer does not keep them
    operators: list[str]  # those that are one token
    names: dict[str, list[str]]
    code_bytes_per_token: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "numbers": self.numbers,
            "digits_per_token": round(self.digits_per_token, 4),
            "grouping": self.grouping,
            "indentation_tokens": {str(spaces): tokens for spaces, tokens in self.indents.items()},
            "whole_operators": self.operators,
            "names": self.names,
            "code_bytes_per_token": round(self.code_bytes_per_token, 4),
        }


def split(tokenizer: Tokenizer) -> Splits:
    """Cut the probes."""
    numbers = {number: pieces(tokenizer, number) for number in NUMBERS}
    digits = {number: pieces(tokenizer, number) for number in (*NUMBERS, *LONG_NUMBERS) if number.isdigit()}
    snippet = tokenizer.encode(SNIPPET)
    return Splits(
        numbers=numbers,
        digits_per_token=sum(map(len, digits)) / sum(map(len, digits.values())),
        grouping=grouping([digits[number] for number in LONG_NUMBERS]),
        indents={spaces: _indentation(tokenizer, spaces) for spaces in INDENTS},
        operators=[operator for operator in OPERATORS if _whole(tokenizer, operator)],
        names={name: pieces(tokenizer, name) for name in NAMES},
        code_bytes_per_token=len(SNIPPET.encode()) / max(1, len(snippet)),
    )


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What each token of `text` says there: without a space that the vocabulary thinks of and the text does not have.

    Tokens that are parts of a character come together in one piece; an unknown token is `[?]`.
    """
    found: list[str] = []
    held = b""
    at = 0  # how far `text` is told
    for number in tokenizer.encode(text):
        if number == tokenizer.unk:
            found.append(UNKNOWN)
            continue
        held += tokenizer.token_bytes(number)
        try:
            piece = held.decode("utf-8")
        except UnicodeDecodeError:
            continue
        held = b""
        if piece.startswith(" ") and not text.startswith(" ", at):
            piece = piece[1:]
        place = text.find(piece, at)
        at = at if place < 0 else place + len(piece)
        found.append(piece)
    return [piece for piece in [*found, held.decode("utf-8", errors="replace")] if piece]


def grouping(numbers: Sequence[Sequence[str]]) -> str:
    """The rule by which the digits of long `numbers` were put into pieces: `single digits`, `3 from the left`,
    `3 from the right` (its remainder stands first), or `irregular`."""
    sizes = [[len(piece) for piece in pieces] for pieces in numbers]
    if any(not piece.isdigit() for pieces in numbers for piece in pieces):
        return "irregular"
    most = max((size for one in sizes for size in one), default=0)
    if most == 1:
        return "single digits"
    for name, reverse in (("left", False), ("right", True)):
        if all(one == _grouped(sum(one), most, reverse) for one in sizes):
            return f"{most} from the {name}"
    return "irregular"


def _grouped(digits: int, most: int, reverse: bool) -> list[int]:
    whole, rest = divmod(digits, most)
    groups = [most] * whole + ([rest] if rest else [])
    return groups[::-1] if reverse else groups


def _indentation(tokenizer: Tokenizer, spaces: int) -> int:
    """Tokens that an indentation costs: those of an indented line less those of the line."""
    indented, plain = (len(tokenizer.encode(f"x\n{' ' * count}return y")) for count in (spaces, 0))
    return max(0, indented - plain)


def _whole(tokenizer: Tokenizer, operator: str) -> bool:
    """Whether `operator`, between spaces, is one token."""
    return pieces(tokenizer, f"a {operator} b")[1:-1] in ([f" {operator}"], [operator])
