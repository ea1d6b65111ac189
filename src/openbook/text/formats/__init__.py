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
from dataclasses import replace
from pathlib import Path

import tokenizers

from openbook.errors import TokenizerError
from openbook.text.folder import Added, Settings, read_settings
from openbook.text.formats import bpe_files, gguf, ranks, sentencepiece, tekken, word_pieces
from openbook.text.formats.found import Asked, Found, damaged, read_text

__all__ = ["Asked", "Found", "read"]

# What a folder without a tokenizer.json is looked through for, in this order.
LAYOUTS = ("tekken.json", "*.model", "*.tiktoken", "vocab.json", "encoder.json", "vocab.txt", "*.gguf")


def read(path: Path, asked: Asked) -> tuple[tokenizers.Tokenizer, Settings, str] | None:
    """The tokenizer in `path`, a file or a folder; None where it is a tokenizer.json or nothing known.

    TokenizerError: damaged, or something that the files do not say and nobody gave.
    """
    file = _inside(path) if path.is_dir() else path
    if file is None or not file.is_file():
        return None
    beside = _with_added(read_settings(file.parent), file.parent / "added_tokens.json")
    found = _read(file, beside, asked)
    return None if found is None else (found.backend(file), found.beside(beside), str(file))


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


def _read(file: Path, beside: Settings, asked: Asked) -> Found | None:
    with file.open("rb") as handle:
        head = handle.read(1 << 12)
    if head.startswith(gguf.MAGIC):
        return gguf.read(file)
    if ranks.is_ranks(head):
        return ranks.read(file, asked)
    if pair := bpe_files.pair_of(file):
        return bpe_files.read(pair, beside, asked)
    if head.lstrip()[:1] == b"{":
        return tekken.read(file) if _has_tekken(head) else None
    if sentencepiece.is_model(head):
        return sentencepiece.read(file, beside)
    if file.suffix == ".txt":
        return word_pieces.read(file, beside, asked)
    return None


def _has_tekken(head: bytes) -> bool:
    """A tokenizer.json has its `model` or `version` first; tekken.json has `config` and `vocab`, and no `model`."""
    keys = (b'"default_vocab_size"', b'"token_bytes"', b'"token_str"')
    return b'"model"' not in head and any(key in head for key in keys)
