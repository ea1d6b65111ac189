"""Readers of published vocabularies that are not a tokenizer.json, chosen by what the files hold.

    ranks.py         tiktoken: tokens in base64 with their ranks
    tekken.py        mistral-common: tekken.json
    bpe_files.py     GPT-2 and RoBERTa: vocab.json and merges.txt
    word_pieces.py   BERT: vocab.txt
    sentencepiece.py SentencePiece: tokenizer.model, spiece.model, sentencepiece.bpe.model
    gguf.py          the vocabulary in the header of a GGUF

Each gives a `Found`: the state of a tokenizer.json with exactly the ids of the library that the format comes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import tokenizers

from openbook.errors import TokenizerError, UsageError
from openbook.files import explain_os_error
from openbook.text.folder import Added, Settings, read_settings
from openbook.text.formats import bpe_files, gguf, ranks, sentencepiece, tekken, word_pieces
from openbook.text.formats.found import Asked, Found, damaged, read_text

__all__ = ["Asked", "Found", "read"]

# What a folder without a tokenizer.json is looked through for, in this order.
LAYOUTS = ("tekken.json", "*.model", "*.tiktoken", "vocab.json", "encoder.json", "vocab.txt", "*.gguf")


# What the caller may say of each layout, because the files do not.
_ASKED = {
    "ranks": {"pattern", "specials"},
    "bpe_files": {"pattern", "specials"},
    "word_pieces": {"lowercase", "specials"},
}


def read(path: Path, asked: Asked) -> tuple[tokenizers.Tokenizer, Settings, str] | None:
    """The tokenizer in `path`, a file or a folder; None where it is a tokenizer.json or nothing known.

    TokenizerError: damaged, or something that the files do not say and nobody gave. UsageError: something was given
    that the files say themselves.
    """
    file = _inside(path) if path.is_dir() else path
    layout = _layout(file) if file is not None and file.is_file() else None
    if layout is None and file is not None and file.suffix != ".json":
        return None  # whatever was given, that it is no vocabulary comes first
    given = {"pattern": asked.pattern, "specials": asked.specials, "lowercase": asked.lowercase}
    for key, value in given.items():
        if value is not None and key not in _ASKED.get(layout or "", ()):
            raise UsageError(f"`{key}` is of no use for '{path}': its files say it, or it has none. Leave it out.")
    _check(asked)
    if layout is None or file is None:
        return None
    beside = _with_added(read_settings(file.parent), file.parent / "added_tokens.json")
    found = _READERS[layout](file, beside, asked)
    return found.backend(file), found.beside(beside), str(file)


def _check(asked: Asked) -> None:
    """UsageError where something of another kind was given than what is asked for."""
    specials: object = asked.specials if asked.specials is not None else {}
    ids = list(specials.items()) if isinstance(specials, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and type(number) is int for name, number in ids):
        raise UsageError(f"`specials` are contents and their ids, as {{'<|end|>': 50256}}: got {specials!r:.80}.")
    for key, value, kind in (("pattern", asked.pattern, str), ("lowercase", asked.lowercase, bool)):
        if value is not None and not isinstance(value, kind):
            raise UsageError(f"`{key}` is a {kind.__name__}: got {value!r:.80}.")


def _with_added(beside: Settings, path: Path) -> Settings:
    """The settings with the ids in added_tokens.json, the older place of `added_tokens_decoder`, which wins."""
    if beside.added or not path.is_file():
        return beside
    try:
        ids = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(ids, dict) or not all(type(number) is int and number >= 0 for number in ids.values()):
        raise damaged(path, "it must be an object of tokens and their ids")
    special = {token.content: token for token in [*beside.roles.values(), *beside.extra]}
    added = {number: special.get(name, Added(content=name, special=False)) for name, number in ids.items()}
    return replace(beside, added=added)


def _inside(folder: Path) -> Path | None:
    """The vocabulary in a folder without a tokenizer.json."""
    if (folder / "tokenizer.json").is_file():
        return None
    for layout in LAYOUTS:
        files = sorted(file for file in folder.glob(layout) if file.is_file())
        if len(files) > 1:
            raise TokenizerError(
                f"There are several vocabularies in '{folder}': {', '.join(file.name for file in files[:4])}. Give the "
                "file that is meant."
            )
        if files and (layout not in ("vocab.json", "encoder.json") or bpe_files.pair_of(files[0])):
            return files[0]
    return None


def _layout(file: Path) -> str | None:
    """Which of the readers a file is for, by what it begins with and what lies beside it."""
    try:
        with file.open("rb") as handle:
            head = handle.read(1 << 12)
    except OSError as error:
        raise TokenizerError(str(explain_os_error(error, file, "read"))) from error
    if head.startswith(gguf.MAGIC):
        return "gguf"
    if ranks.is_ranks(head):
        return "ranks"
    if bpe_files.pair_of(file):
        return "bpe_files"
    if head.lstrip()[:1] == b"{":
        return "tekken" if _has_tekken(head) else None
    if sentencepiece.is_model(head):
        return "sentencepiece"
    return "word_pieces" if file.suffix == ".txt" else None


def _pair(file: Path, beside: Settings, asked: Asked) -> Found:
    files = bpe_files.pair_of(file)
    assert files is not None
    return bpe_files.read(files, beside, asked)


_READERS: dict[str, Callable[[Path, Settings, Asked], Found]] = {
    "ranks": lambda file, _, asked: ranks.read(file, asked),
    "tekken": lambda file, *_: tekken.read(file),
    "bpe_files": _pair,
    "word_pieces": word_pieces.read,
    "sentencepiece": lambda file, beside, _: sentencepiece.read(file, beside),
    "gguf": lambda file, *_: gguf.read(file),
}


def _has_tekken(head: bytes) -> bool:
    """A tokenizer.json has its `model` or `version` first; tekken.json has `config` and `vocab`, and no `model`."""
    keys = (b'"default_vocab_size"', b'"token_bytes"', b'"token_str"')
    return b'"model"' not in head and any(key in head for key in keys)
