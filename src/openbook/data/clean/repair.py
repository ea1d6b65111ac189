"""Text repair: what was decoded wrongly, HTML entities, line ends, control and zero-width characters, one normal form.

What is wrong with the encoding is found by ftfy (Speer 2019), which reads 5 to 7 MB/s; sound text must not pay for it.
Which characters a text holds at all is known at memory speed: plain ASCII goes, and the set of what is left says which
faults are possible. Only the lines where one stands are given to ftfy, so the result is that of ftfy on the whole.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar, Literal

from openbook.data.documents import Document
from openbook.data.steps import Removed
from openbook.errors import MissingExtra

# Line ends besides "\n" and "\r". Vertical tab and form feed part pages.
_LINE_ENDS = "\v\f\x85\u2028\u2029"
# No text uses these: C0 and C1 controls but tab and newline, deprecated format controls, annotations, non-characters.
_CONTROLS = "".join(chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r")
_CONTROLS += "".join(map(chr, (*range(0x206A, 0x2070), *range(0xFFF9, 0xFFFD), 0xFFFE, 0xFFFF)))
# Without width, and without a meaning to a reader. The joiners U+200C and U+200D shape letters, and direction marks
# order them: they stay.
_ZERO_WIDTH = "\xad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff"
_TERMINAL = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")  # colours and cursor movements of a terminal
_QUIET = bytes(c for c in range(128) if chr(c) in "\t\n" or 32 <= c < 127)  # ASCII that is never at fault by itself


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Mend a document's characters. One that is empty afterwards goes."""

    name: ClassVar[str] = "repair"

    encoding: bool = True
    """UTF-8 that was decoded as another encoding ("cafÃ©") and the like, by ftfy."""
    entities: Literal["auto", "always", "never"] = "auto"
    """HTML entities (`&amp;`) become characters. auto: up to the first `<`, for what follows may be HTML."""
    ligatures: bool = True
    """`ﬁ` becomes `fi`: they come from typesetting."""
    width: bool = False
    """Full-width Latin and half-width kana become the usual ones. Not for Chinese or Japanese: their commas change."""
    quotes: bool = False
    """Curly quotation marks become straight ones."""
    line_ends: bool = True
    """Every line end becomes a plain newline."""
    controls: bool = True
    """Control characters and terminal colours go; tab and newline stay."""
    zero_width: bool = True
    """Soft hyphens, zero-width spaces and byte-order marks inside the text go; joiners stay."""
    normal_form: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode's normal form, without what stands beyond 30 marks on one letter (UAX 15's stream-safe text): putting
    marks in order takes time with the square of their number. NFKC also changes what a text says: `²` becomes `2`."""

    def __call__(self, document: Document, /) -> Document | Removed:
        text = self.repair(document.text)
        if text is document.text or text == document.text:
            return document
        return replace(document, text=text) if text.strip() else Removed("nothing is left after repair")

    def repair(self, text: str) -> str:
        """The text mended. Raises MissingExtra where only ftfy can do what is wanted."""
        mended = self._mend(_plain_line_ends(text) if self.line_ends else text)
        text = _plain_line_ends(mended) if self.line_ends else mended  # again: `&#13;` was an entity until now
        faults = characters(text)
        if self.controls and "\x1b" in faults:
            text = _TERMINAL.sub("", text)
        single = _single(self.line_ends, self.controls, self.zero_width)
        if not faults.isdisjoint(single):
            text = text.translate(str.maketrans(single))
        if self.normal_form == "none":
            return text
        text = _few_marks(text, faults)
        if not unicodedata.is_normalized(self.normal_form, text):
            text = unicodedata.normalize(self.normal_form, text)
        return text

    def _mend(self, text: str) -> str:
        """What ftfy does, on the lines that may need it."""
        if text.isascii() and (self.entities == "never" or "&" not in text):
            return text
        if not (self.encoding or self.ligatures or self.width or self.quotes or self.entities != "never"):
            return text
        fix = _fixer(self)
        seen = characters(text)
        hazards = [h for h in _hazards(self) if not h.characters or not h.characters.isdisjoint(seen)]
        tags = text.find("<") if self.entities == "auto" else -1
        parts: list[str] = []
        done = 0
        for start, end in _lines(text, hazards):
            parts += text[done:start], fix(text[start:end], 0 <= tags < start)
            done = end
        return "".join((*parts, text[done:])) if parts else text


def characters(text: str) -> set[str]:
    """The characters of a text other than printable ASCII, tabs and newlines."""
    return set(text.encode().translate(None, _QUIET).decode())


def _plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _few_marks(text: str, found: set[str]) -> str:
    marks = "".join(character for character in found if unicodedata.combining(character))
    return re.sub(f"([{marks}]{{30}})[{marks}]+", r"\1", text) if marks else text


@functools.cache
def _single(line_ends: bool, controls: bool, zero_width: bool) -> dict[str, str | int | None]:
    """What single characters become; None: nothing. A line end among the controls is first a line end."""
    table: dict[str, str | int | None] = dict.fromkeys(_CONTROLS) if controls else {}
    table |= dict.fromkeys(_ZERO_WIDTH) if zero_width else {}
    return table | (dict.fromkeys(_LINE_ENDS, "\n") if line_ends else {})


# ------------------------------------------------------------------------------------------------ where a fault may be


@dataclass(frozen=True, slots=True)
class _Hazard:
    """A pattern without which a fix of ftfy changes nothing; it begins with one of `characters` (empty: ASCII)."""

    characters: frozenset[str]
    pattern: re.Pattern[str]


@functools.cache
def _hazards(wanted: Repair) -> list[_Hazard]:
    """Every change that ftfy makes needs one of these in the line."""
    chardata = _ftfy().chardata
    single = ""
    found = [] if wanted.entities == "never" else [_Hazard(frozenset(), re.compile(r"&#?[0-9A-Za-z]{1,24};"))]
    if wanted.encoding:
        found += _mojibake()
        single += "".join(map(chr, range(0x80, 0xA0)))
    if wanted.ligatures:
        single += "".join(map(chr, chardata.LIGATURES))
    if wanted.width:
        single += "".join(map(chr, chardata.WIDTH_MAP))
    if wanted.quotes:
        single += "\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f"
    return [*found, _Hazard(frozenset(single), re.compile(f"[{re.escape(single)}]"))] if single else found


def _mojibake() -> list[_Hazard]:
    """Where ftfy's test for wrongly decoded text (`ftfy.badness`) can say yes.

    It looks for unlikely neighbours among some 400 characters. Each of its cases has one of these: two characters
    beyond ASCII side by side, one of them neither a letter of plain Greek or Cyrillic nor usual punctuation; one
    of the capitals that begin wrongly decoded Greek or Cyrillic beside punctuation beyond ASCII; œ before what is
    no letter; Â or Ã before a space.
    """
    kinds = _ftfy().badness.MOJIBAKE_CATEGORIES
    calm = {"common", "start_punctuation", "end_punctuation", "lower_common", "upper_common"}
    loud = _members("".join(kinds[kind] for kind in kinds if kind not in calm))
    leads = "вВГРСΒΓΞΟβ"
    beside = _members(kinds["start_punctuation"] + kinds["end_punctuation"]) | set("Ђў€")
    anything = r"[^\x00-\x7f]"
    loud_class = f"[{re.escape(''.join(sorted(loud)))}]"
    pairs = re.compile(f"{loud_class}(?:(?={anything})|(?<={anything}{loud_class}))")
    return [
        _Hazard(frozenset(loud), pairs),
        _Hazard(frozenset(leads), re.compile(f"[{leads}](?=[{re.escape(''.join(sorted(beside)))}])")),
        _Hazard(frozenset("Œœ"), re.compile("[Œœ](?=[^A-Za-z])")),
        _Hazard(frozenset("ÂÃ"), re.compile("[ÂÃ](?= )")),
    ]


def _members(characters: str) -> set[str]:
    """The characters of the inside of a character class without escapes: `Ò-Ö` is a range."""
    found = set(characters) - {"-"}
    for low, high in re.findall("(.)-(.)", characters, re.DOTALL):
        found |= set(map(chr, range(ord(low), ord(high) + 1)))
    return found


def _lines(text: str, hazards: list[_Hazard]) -> Iterator[tuple[int, int]]:
    """Start and end of the lines in which a hazard stands, in order."""
    following: list[tuple[int, re.Pattern[str]]] = []
    for hazard in hazards:
        if found := hazard.pattern.search(text):
            following.append((found.start(), hazard.pattern))
    while following:
        place = min(start for start, _ in following)
        start = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place) + 1 or len(text)
        yield start, end
        later = []
        for at, pattern in following:
            if at >= end:
                later.append((at, pattern))
            elif found := pattern.search(text, end):
                later.append((found.start(), pattern))
        following = later


# ------------------------------------------------------------------------------------------------ ftfy


@functools.cache
def _ftfy() -> ModuleType:
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtra("ftfy", "data", "Repairing wrongly decoded text") from error
    return ftfy


@functools.cache
def _fixer(wanted: Repair) -> Callable[[str, bool], str]:
    """ftfy on some lines of a text, told whether a `<` stands before them."""
    ftfy = _ftfy()
    config = ftfy.TextFixerConfig(
        unescape_html={"auto": "auto", "always": True, "never": False}[wanted.entities],
        fix_encoding=wanted.encoding,
        fix_c1_controls=wanted.encoding,
        fix_latin_ligatures=wanted.ligatures,
        fix_character_width=wanted.width,
        uncurl_quotes=wanted.quotes,
        # The rest is done here, after it, at the speed of memory.
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_terminal_escapes=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    inside = config._replace(unescape_html=False)
    return lambda lines, tags: ftfy.fix_text(lines, inside if tags else config)
