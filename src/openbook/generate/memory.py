"""How much memory an engine may use for keys, values and states: a size a person writes, or a share of what is free."""

from __future__ import annotations

import re

from openbook import hardware
from openbook.errors import InputError

SHARE = 0.4  # of what is free, where nothing is said
MOST = 8 << 30  # bytes, where nothing is said
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def memory_for(asked: int | str | None) -> int:
    """Bytes: a number, a size such as "2GiB" or "1.5 GB" (powers of 1,024), or None for a share of what is free."""
    if asked is None:
        return max(1 << 20, min(MOST, int(SHARE * hardware.memory()[1])))
    size = _parsed(asked) if isinstance(asked, str) else asked
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f'`memory` must be a number of bytes or a size such as "2GiB": got {asked!r}.')
    return size


def _parsed(text: str) -> int | None:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    return None if found is None else int(float(found[1]) * UNITS[found[2].upper()])
