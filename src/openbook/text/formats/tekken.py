"""mistral-common's tekken.json: ranks as in tiktoken, the split pattern, and special tokens, which take the first ids.

Of the vocabulary the first `default_vocab_size - default_num_special_tokens` tokens are used. A file of the early
versions (v3, v7) names no special tokens: they are the ones below, filled up with `<SPECIAL_20>` and so on.
"""

from __future__ import annotations

import binascii
import json
from pathlib import Path
from typing import Any

from openbook.text.folder import Added, Settings
from openbook.text.formats.found import Found, damaged, read_text
from openbook.text.formats.ranks import check, from_ranks

_EARLY = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
_EARLY += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
_EARLY += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
_ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def is_tekken(value: object) -> bool:
    """Whether a JSON value is of this layout."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("vocab"), list)
        and isinstance(value.get("config"), dict)
        and "pattern" in value["config"]
    )


def read(path: Path) -> Found:
    """Read a tekken.json."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not is_tekken(value):
        raise damaged(path, "it needs `vocab` (a list) and `config` with `pattern`")
    config = value["config"]
    pattern, whole, reserved = (
        config.get(key) for key in ("pattern", "default_vocab_size", "default_num_special_tokens")
    )
    if not isinstance(pattern, str) or not _count(whole) or not _count(reserved) or reserved > whole:
        raise damaged(path, "`config` needs `pattern`, `default_vocab_size` and `default_num_special_tokens`")
    specials = _specials(value.get("special_tokens"), reserved, path)
    ranks = _ranks(value["vocab"], whole - reserved, path)
    roles = {role: Added(content=name) for role, name in _ROLES.items() if name in specials}
    return Found(state=from_ranks(ranks, pattern, specials, path, shift=reserved), settings=Settings(roles=roles))


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 24


def _ranks(rows: list[Any], inner: int, path: Path) -> dict[bytes, int]:
    if len(rows) < inner:
        raise damaged(path, f"`vocab` has {len(rows)} tokens, `config` counts {inner}")
    ranks: dict[bytes, int] = {}
    for number, row in enumerate(rows[:inner]):
        try:
            token = binascii.a2b_base64(row["token_bytes"], strict_mode=True)
            if row["rank"] != number or not token or token in ranks:
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, f"entry {number} of `vocab` is no token of that rank: {row!r:.80}") from error
        ranks[token] = number
    check(ranks, path)
    return ranks


def _specials(rows: object, reserved: int, path: Path) -> dict[str, int]:
    if rows is None:
        named = {name: number for number, name in enumerate(_EARLY)}
    elif isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("token_str"), str) and _count(row.get("rank")) for row in rows
    ):
        named = {row["token_str"]: row["rank"] for row in rows}
    else:
        raise damaged(path, "`special_tokens` must be a list of tokens with `token_str` and `rank`")
    count = len(_EARLY) if rows is None else len(rows)
    if len(named) < count or sorted(named.values()) != list(range(count)) or count > reserved:
        raise damaged(path, f"the {count} special tokens must be different and have the ids from 0 to {reserved - 1}")
    return named | {f"<SPECIAL_{number}>": number for number in range(count, reserved)}
