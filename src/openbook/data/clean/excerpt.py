"""A part of a long text that stands for the whole."""

from __future__ import annotations


def excerpt(text: str, size: int) -> str:
    """At most `size` characters: half from the beginning, where titles and menus stand, and half from the middle."""
    if len(text) <= size:
        return text
    head = size // 2
    tail = size - head
    middle = max(head, (len(text) - tail) // 2)
    return text[:head] + text[middle : middle + tail]
