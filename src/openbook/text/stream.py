"""From ids to text one id at a time: what is shown is never taken back, and never half a character.

How the text of an id depends on its neighbours is decided by the tokenizer's decoder. There are three cases:

    bytes    byte-level vocabularies: an id is some bytes, text is their UTF-8. Bytes of a character are held until it
             is whole; bytes that can be no character become U+FFFD at once, as in the decoding of the whole.
    pieces   sentencepiece and WordPiece: the text of an id depends on whether something stands before it (the space at
             the start of a word), and a run of byte tokens (`<0xE2>`) is one unit, so it is held until the run ends.
    whole    anything else is held to the end: the law below comes first.

The law: the pieces and `finish()`, joined, are `Tokenizer.decode` of all the ids.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openbook.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOCAL = {"Metaspace", "WordPiece", "BPEDecoder", "Replace", "ByteFallback", "Fuse", "Strip"}


class Kind(Enum):
    """How the text of an id depends on its neighbours; see the top of this file."""

    BYTES = "bytes"
    PIECES = "pieces"
    WHOLE = "whole"


class Decoding:
    """The decoder of one tokenizer: from the vocabulary's spelling of tokens to text."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        steps = [] if decoder is None else _flatten(json.loads(decoder.__getstate__()))
        self.kind = _kind(steps)
        self._fallback = any(step["type"] == "ByteFallback" for step in steps)

    def text(self, spellings: Sequence[str]) -> str:
        """Text of a whole sequence of tokens."""
        if self._decoder is None:
            return " ".join(spellings)
        text: str = self._decoder.decode(list(spellings))
        return text

    def is_byte(self, spelling: str) -> bool:
        """Whether the token is one byte of a character that the vocabulary lacks."""
        return self._fallback and _BYTE_TOKEN.fullmatch(spelling) is not None

    def bytes(self, spelling: str) -> bytes:
        """What the token adds to a text in which something stands before it."""
        if self.kind is Kind.BYTES:
            return _level_bytes(spelling)
        if self._fallback and (match := _BYTE_TOKEN.fullmatch(spelling)):
            return bytes.fromhex(match[1])
        return self.text(["x", spelling])[1:].encode("utf-8")


class TextStream:
    """Incremental decoding. `feed` an id and get the text that is now certain; `finish` gives what was still held."""

    def __init__(self, tokenizer: Tokenizer, *, skip_specials: bool = True) -> None:
        self._tokenizer = tokenizer
        self._decoding = tokenizer.decoding
        self._skipped = frozenset(tokenizer.specials) if skip_specials else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._before: list[str] = []  # tokens already shown, as many as the next ones depend on
        self._held: list[str] = []

    def feed(self, number: int) -> str:
        """Text that `number` completes; often its own, empty while a character is incomplete."""
        spelling = self._tokenizer.token(number)
        if spelling is None or spelling in self._skipped:  # by its name, as in decoding: it may have two ids
            return ""
        if self._decoding.kind is Kind.BYTES:
            return self._utf8.decode(_level_bytes(spelling))
        self._held.append(spelling)
        if self._decoding.kind is Kind.WHOLE or self._decoding.is_byte(spelling):
            return ""
        return self._show()

    def finish(self) -> str:
        """What is still held. The stream can then be used for another text."""
        if self._decoding.kind is Kind.BYTES:
            text = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            return text
        text = self._show()
        self._before = []
        return text

    def _show(self) -> str:
        base = self._decoding.text(self._before) if self._before else ""
        text = self._decoding.text(self._before + self._held)[len(base) :] if self._held else ""
        alone = self._decoding.text(self._held) if self._held else ""
        # A token whose text vanishes at the start of a sequence (a lone space) cannot stand for what came before it.
        self._before = self._held if alone else self._before + self._held
        self._held = []
        return text


def _flatten(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state["decoders"] for step in _flatten(part)]


def _kind(steps: list[dict[str, Any]]) -> Kind:
    types = [step["type"] for step in steps]
    if types in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return Kind.BYTES
    if not set(types) <= _LOCAL:
        return Kind.WHOLE
    fused = types.index("Fuse") if "Fuse" in types else len(types)
    after = [step for step in steps[fused:] if step["type"] != "Fuse"]
    local = all(step["type"] == "Strip" and step["stop"] == 0 for step in after)
    return Kind.PIECES if local else Kind.WHOLE


def _byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for a byte: itself where it is visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return table | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_characters()


def _level_bytes(spelling: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; one that is not written in that alphabet stands for itself."""
    try:
        return bytes(_BYTES[character] for character in spelling)
    except KeyError:
        return spelling.encode("utf-8")
