"""Where personal and secret things stand in a text, as far as patterns and check digits can tell.

Each kind has a pattern that begins with a rare character and has bounded repetitions only, so a search takes time in
proportion to the text, whatever stands in it; a check then looks at what was found. Names, addresses and dates of birth
have no pattern: they are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from openbook.data.clean import checksums

Span = tuple[int, int]
Find = Callable[[str, int, int], Iterator[Span]]  # what begins in a part of a text
# A digit, 0 to 9 (`\d` has those of every script), and two hexadecimal ones.
D, H = "[0-9]", "[0-9A-Fa-f]{2}"


@dataclass(frozen=True, slots=True)
class Found:
    """Something of a kind at text[start:end]."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: tuple[str, ...]) -> list[Found]:
    """What stands in a text, in order, without overlaps: of two the earlier kind of KINDS counts."""
    rank = {kind: number for number, kind in enumerate(KINDS) if kind in kinds}
    found = [Found(*span, kind) for kind in rank for finder in KINDS[kind] for span in finder(text, 0, len(text))]
    for start, end in _numbers(text):
        found += [
            Found(*span, kind) for kind in rank for finder in NUMBERS.get(kind, ()) for span in finder(text, start, end)
        ]
    kept: list[Found] = []
    for item in sorted(found, key=lambda f: (f.start, rank[f.kind], -f.end)):
        if kept and item.start < kept[-1].end:
            if rank[item.kind] >= rank[kept[-1].kind]:
                continue
            kept.pop()
        kept.append(item)
    return kept


# ------------------------------------------------------------------------------------------------ how kinds are found

# Seven digits with little between them: every kind of NUMBERS begins inside of such a match, or one sign before it.
_MANY_DIGITS = re.compile(rf"{D}(?:[^\w\n]{{0,3}}{D}){{6}}")
_LONGEST_NUMBER = 100


def _numbers(text: str) -> Iterator[Span]:
    """The parts of a text in which numbers long enough stand: most texts have few."""
    start = end = 0
    for match in _MANY_DIGITS.finditer(text):
        if match.start() > end:
            if end:
                yield start, end
            start = max(0, match.start() - 1)
        end = min(len(text), match.end() + _LONGEST_NUMBER)
    if end:
        yield start, end


def _pattern(pattern: str, check: Callable[[str], bool] | None = None, clue: str = "", before: int = 0) -> Find:
    """Matches that a check accepts. `clue`: a text without it has none; `before`: characters ahead of the match."""
    compiled = re.compile(pattern)

    def find(text: str, first: int, last: int) -> Iterator[Span]:
        if clue in text:
            for match in compiled.finditer(text, first, last):
                start = match.start() - before
                if check is None or check(text[start : match.end()]):
                    yield start, match.end()

    return find


def _beside(words: str, pattern: str, check: Callable[[str], bool], between: str = r"[^\n]*") -> Find:
    """Numbers that could be anything, after a word that says what they are: within 40 characters, in one line."""
    inner = _pattern(pattern, check)
    named = re.compile(rf"(?i)(?<![^\W_])(?:{words})(?![^\W_]){between}\Z")

    def find(text: str, first: int, last: int) -> Iterator[Span]:
        for start, end in inner(text, first, last):
            if named.search(text[max(0, start - 40) : start]):
                yield start, end

    return find


def _digits(check: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: check(re.sub(r"\D", "", text))


_LOCAL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._%+'\-]*[A-Za-z0-9_%+])?\Z")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_])")


def _emails(text: str, first: int, last: int) -> Iterator[Span]:
    at = text.find("@", first, last)
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1, at + 256)
        local = _LOCAL.search(text[max(0, at - 64) : at]) if domain else None
        if domain and local:
            yield at - len(local[0]), domain.end()
        at = text.find("@", at + 1, last)


_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX = re.compile(r"[0-9A-Fa-f:.]{0,45}")
_HEX_BEFORE = re.compile(r"(?<![0-9A-Za-z_:.])[0-9A-Fa-f:]*\Z")


def _colon_groups(wanted: Callable[[str], bool]) -> Find:
    """Groups of hexadecimal digits parted by colons: hardware addresses, and IP addresses of version 6."""

    def find(text: str, first: int, last: int) -> Iterator[Span]:
        done = first
        for colons in _COLONS.finditer(text, first, last):
            if colons.start() < done:
                continue
            ahead = _HEX_BEFORE.search(text[max(done, colons.start() - 5) : colons.start()])
            match = _HEX.match(text, colons.start())
            if ahead and match:
                start, done = colons.start() - len(ahead[0]), match.end()
                end = start + len(text[start:done].rstrip("." if match[0].endswith("::") else ".:"))
                if not text[end : end + 1].isalnum() and wanted(text[start:end]):
                    yield start, end

    return find


def _global_address(text: str) -> bool:
    """An address of the public internet: those of private networks and examples name nobody.

    With `::` in it (`std::`), only one of the blocks that are given out.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address) and max(address.packed) < 32:
        return False  # rather the number of a section or a version
    return address.is_global and ("::" not in text or text[0] in "23")


_START = rf"{D}(?<![\w.,+]{D})(?<![0-9][\-/]{D})"  # a digit at the beginning of a number
_FOUR = _pattern(rf"{_START}{D}{{0,2}}(?:\.{D}{{1,3}}){{3}}(?!\w|\.{D})", _global_address)
_COUNTED = re.compile(
    r"(?i)(?:\b(?:versions?|ver|v|rev|revision|release|build|firmware|sections?|sec|chapters?|clauses?|articles?|rules?"
    r"|fig|figures?|tables?|paragraphs?|para)|§)[ .]{0,2}\Z"
)


def _four_numbers(text: str, first: int, last: int) -> Iterator[Span]:
    """IP addresses of version 4; after a word that says so, four numbers are a version or the place in a book."""
    for start, end in _FOUR(text, first, last):
        if not _COUNTED.search(text[max(0, start - 16) : start]):
            yield start, end


def _mac(text: str) -> bool:
    return re.fullmatch(r"[0-9A-Fa-f]{2}(?:[:\-][0-9A-Fa-f]{2}){5}", text) is not None


def _card(text: str) -> bool:
    """The lengths that issuers give out under their first digits, and the check digit."""
    digits = re.sub(r"\D", "", text)
    return _ISSUERS.fullmatch(digits) is not None and checksums.luhn(digits) and len(set(digits)) > 1


_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|(?:2131|1800)\d{11}|(?:5[0678]|6\d)\d{10,17}"
)
_KEY_BEGIN, _KEY_END = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"), "-----END "


def _private_keys(text: str, first: int, last: int) -> Iterator[Span]:
    """PEM blocks, to their end line; of one that is cut off, what looks like its content."""
    at, more = first, True
    for begin in _KEY_BEGIN.finditer(text, first, last):
        if begin.start() < at:
            continue
        end = text.find(_KEY_END, begin.end()) if more else -1
        more = end >= 0
        if more:
            at = text.find("-----", end + len(_KEY_END))
            at = len(text) if at < 0 else at + 5
        else:
            at = _BASE64.match(text, begin.end()).end()  # type: ignore[union-attr]
        yield begin.start(), at


_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")


def _key(text: str) -> bool:
    """Random: with digits and letters."""
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))


def _keys() -> tuple[Find, ...]:
    """Keys and tokens that say by their first letters who gave them out."""
    letters, more = "[A-Za-z0-9]", r"[A-Za-z0-9_\-]"
    forms = [
        ("gh", "[oprsu]_" + letters + "{36,255}", "_"),
        ("github_pat_", more + "{60,255}", "_"),
        ("npm_", letters + "{36,255}", "_"),
        ("hf_", letters + "{30,64}", "_"),
        ("sk_live_", letters + "{20,128}", "_"),
        ("rk_live_", letters + "{20,128}", "_"),
        ("xox", "[abeoprs]-" + more + "{20,255}", ""),
        ("glpat-", more + "{20,64}", ""),
        ("sk-", more + "{20,255}", ""),
        ("pypi-AgE", more + "{50,255}", ""),
        ("AIza", more + "{35}", ""),
        ("SG.", rf"{more}{{16,64}}\.{more}{{16,64}}", ""),
        ("AKIA", "[A-Z0-9]{16}", ""),
        ("ASIA", "[A-Z0-9]{16}", ""),
        ("ya29.", more + "{30,255}", ""),
        ("eyJ", rf"{more}{{10,2000}}\.eyJ{more}{{10,4000}}\.{more}{{10,1000}}", ""),
    ]
    return tuple(
        _pattern(rf"{re.escape(first)}(?<![\w\-]{re.escape(first)}){rest}(?![A-Za-z0-9])", _key, clue or first)
        for first, rest, clue in forms
    )


def _trunk(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    if text.startswith("00"):  # another country
        return 10 <= digits <= 15
    return 9 <= digits <= 11 and len(set(text)) > 4 and not re.match(r"0\d[./\-]\d\d?[./\-]\d{4}", text)


_DATE = re.compile(r"(?:19|20)\d\d-\d\d-\d\d|\d\d?[./]\d\d?[./](?:19|20)\d\d")
_EXTENSION = rf"(?: ?(?:x|ext\.?) ?{D}{{1,6}})?(?!\w)"
_CALL = "mobile|cell|call|dial|text|contact|reach"
_SMALL_WORD = r"\b(?:us|me|him|her|them|now|today|at|on|or|to|the|my|our|number|no|nr|toll|free|line)\b"
_SMALL = rf"[ .:,;=#(]|{_SMALL_WORD}"
_ANY_PHONE = rf"{_START}(?:[ .\-()/]{{0,2}}{D}){{6,14}}(?!{D})"
_YEARS = re.compile(r"(?:1[0-9]|20)\d\d(?:\D{1,2}(?:1[0-9]|20)\d\d)+")


def _maybe_phone(text: str) -> bool:
    return len(set(text)) > 4 and not _DATE.search(text) and not _YEARS.match(text)


_PHONES = (
    _pattern(rf"\+(?<![\w+]\+){D}(?:[ .\-/()]{{0,3}}{D}){{7,14}}{_EXTENSION}"),
    # North America: 3-3-4
    _pattern(rf"\((?<!\w\()[2-9]{D}{D}\) ?[2-9]{D}{D}[ .\-]{D}{{4}}{_EXTENSION}"),
    _pattern(
        rf"{_START}(?:(?<=1)[ .\-][2-9]|(?<![01])){D}{D}[\-.][2-9]{D}{D}[\-.]{D}{{4}}(?![\-.]{D}){_EXTENSION}",
    ),
    # with the zero that many countries dial for another area, or two for another country
    _pattern(rf"0(?<![\w.,+]0)(?<!{D}[\-/ ]0){D}{{1,4}}(?:[ .\-/]{D}{{2,8}}){{1,5}}(?![\w/])", _trunk),
    _beside("phones?|telephone|tel|fax|whatsapp|sms|hotline", _ANY_PHONE, _maybe_phone),
    # these words have other uses: nothing but small words may stand between, and something must before digits alone
    _beside(_CALL, _ANY_PHONE, lambda t: not t.isdigit() and _maybe_phone(t), rf"(?:{_SMALL})*"),
    _beside(_CALL, rf"{_START}{D}{{6,14}}(?!{D})", _maybe_phone, rf" *(?:{_SMALL})*(?:{_SMALL_WORD}|[:=#]) *"),
)


def _dni(text: str) -> bool:
    return checksums.dni(text.replace("-", ""))


_NATIONAL = (
    _pattern(rf"{_START}{D}{{7}}-?[A-Z](?!\w)", _dni),
    _pattern(rf"{D}(?<=[XYZ]{D})(?<!\w[XYZ]{D}){D}{{6}}-?[A-Z](?!\w)", _dni, before=1),
    _pattern(rf"{_START}{D}{D}\.{D}{{3}}\.{D}{{3}}-{D}{D}(?!{D})", _digits(checksums.cpf)),
    _beside("bsn|burgerservicenummer|sofinummer", rf"{_START}(?:[ .\-]?{D}){{8}}(?!{D})", _digits(checksums.bsn)),
    _beside("nhs", rf"{_START}(?:[ \-]?{D}){{9}}(?!{D})", _digits(checksums.nhs)),
    _beside(
        "steuer-?id|steuer-?identifikationsnummer|idnr|tin|tax id|tax number",
        rf"{_START}(?:[ ]?{D}){{10}}(?!{D})",
        _digits(checksums.german_tax),
    ),
)

_COUNTRY = "[A-Za-z]{2}"
_IBAN = rf"{D}(?<={_COUNTRY}{D})(?<!\w{_COUNTRY}{D}){D}(?: ?[A-Za-z0-9]{{4}}){{2,7}}(?: ?[A-Za-z0-9]{{1,3}})?(?!\w)"

# What is looked for, the surest first: of two that overlap, the one further up counts.
KINDS: Mapping[str, tuple[Find, ...]] = MappingProxyType(
    {
        "private_key": (_private_keys,),
        "credentials": (_pattern(r"://(?<=\w://)[^\s/@:]{1,128}:[^\s/@]{1,256}(?=@)", clue="://"),),
        "api_key": _keys(),
        "email": (_emails,),
        "crypto_address": (
            _pattern(rf"bc1(?<!\wbc1)[{checksums.BECH32}]{{11,71}}(?!\w)", checksums.bech32, "bc1"),
            _pattern(rf"[13](?<!\w[13])[{checksums.BASE58}]{{25,34}}(?!\w)", checksums.base58check),
            _pattern(r"0x(?<!\w0x)[0-9A-Fa-f]{40}(?!\w)", clue="0x"),
        ),
        "iban": (_pattern(_IBAN, lambda t: checksums.iban(t.replace(" ", "")), before=2),),
        "credit_card": (),
        "mac_address": (
            _colon_groups(_mac),
            _pattern(rf"-(?<={H}-)(?<!\w{H}-)(?:{H}-){{4}}{H}(?![\w\-])", _mac, before=2),
        ),
        "ip_address": (
            _four_numbers,
            _colon_groups(_global_address),
        ),
        "ssn": (),
        "national_id": (),
        "phone": (),
    }
)
# Those with seven digits and more, which are looked for only where so many stand.
NUMBERS: Mapping[str, tuple[Find, ...]] = MappingProxyType(
    {
        "credit_card": (
            _pattern(rf"{_START}{D}{{11,18}}(?!\w)", _card),
            _pattern(rf"{_START}{D}{{3}}([ \-]){D}{{4}}\1{D}{{4}}\1{D}{{4}}(?:\1{D}{{3}})?(?!\w)", _card),
            _pattern(rf"{_START}{D}{{3}}([ \-]){D}{{6}}\1{D}{{4,5}}(?!\w)", _card),
        ),
        "ssn": (_pattern(rf"{_START}{D}{{2}}([\- ]){D}{{2}}\1{D}{{4}}(?![\w\-])", _digits(checksums.ssn)),),
        "national_id": _NATIONAL,
        "phone": _PHONES,
    }
)
