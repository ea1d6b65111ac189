"""Pieces of web pages → what a reader sees of them, and what a page says of itself; through resiliparse, extra `data`.

The encoding of a page is, in this order: the one that a byte-order mark or the server says, UTF-8 if it is that, the
one that its head says, the likeliest.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from openbook.data.sources.document import SMALL, Refused, whole_characters
from openbook.errors import MissingExtra

LONGEST_PAGE = 1 << 23  # bytes; its tree takes ten times as much, and of nothing but tags eighty times
BOX, DEEPEST = re.compile(r"<(/?)(?:div|article)\b", re.IGNORECASE), 400  # browsers stop at 512
SAYS = {  # what goes into `meta`, where it stands, and in which attribute
    "language": ("html[lang]", "lang"),
    "license": ("[rel~=license][href]", "href"),
    "url": ("link[rel=canonical][href]", "href"),
}


class _Library(NamedTuple):
    tree: Any
    extract: Any
    detect: Any
    decode: Any


def page(data: bytes, charset: str | None = None) -> tuple[str, dict[str, str]]:
    """The main text of a page, and what it says of itself. `charset`: what the server said. Raises `Refused`."""
    library = _library()
    try:
        content = decoded(data.replace(b"\0", b""), charset)
        tree = library.tree.parse(content)
        text = library.extract(tree, main_content=True).strip() if _is_shallow(content) else ""
        text = text or library.extract(tree, main_content=False).strip()
    except (ValueError, LookupError, RuntimeError) as error:
        raise Refused("not HTML", f"not a page that can be read: {error}.") from error
    whole_characters(text)
    meta = {"title": tree.title or ""}
    for key, (place, attribute) in SAYS.items():
        found = tree.document.query_selector(place)
        meta[key] = (found.getattr(attribute) or "") if found is not None else ""
    return text, {key: value.strip() for key, value in meta.items() if 0 < len(value.strip()) <= SMALL}


def seen(markup: str) -> str:
    """What a reader sees of a piece of a page. Raises `Refused`."""
    if len(markup) > LONGEST_PAGE:
        raise Refused("too long", f"a piece of a page has {LONGEST_PAGE >> 20} Mi characters at most.")
    library = _library()
    try:
        text: str = library.extract(library.tree.parse(markup), main_content=False)
    except (ValueError, LookupError, RuntimeError) as error:
        raise Refused("not HTML", f"not a piece of a page that can be read: {error}.") from error
    return text.strip()


def _is_shallow(content: str) -> bool:
    """Whether boxes are not nested without end: to find the main one of them takes the square of their depth."""
    depth = 0
    for box in BOX.finditer(content):
        depth = depth + 1 if not box[1] else max(0, depth - 1)
        if depth > DEEPEST:
            return False
    return True


def decoded(data: bytes, charset: str | None = None) -> str:
    """The bytes of a page, or of another answer of a server, as a string."""
    library = _library()
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:].decode("utf-8", "replace")
    if not charset or charset.lower() in ("utf-8", "utf8"):
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            charset = library.detect(data, from_html_meta=True)
    return str(library.decode(data, charset))


@lru_cache
def _library() -> _Library:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise MissingExtra("resiliparse", "data", "Reading .html files and web archives") from error
    return _Library(HTMLTree, extract_plain_text, detect_encoding, bytes_to_str)
