"""`openbook tokenizer train`: learn a tokenizer from text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openbook import log
from openbook.errors import TokenizerError
from openbook.options import Positional, parse

EVERY = 0.2  # seconds between status lines


@dataclass(frozen=True, kw_only=True)
class Config:
    """Learn a tokenizer from .txt and .jsonl files or folders of them, and save it as a folder."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text."""
    out: Path
    """Folder to write: tokenizer.json and tokenizer_config.json."""
    vocab: int = 8192
    """Ids at most, the special tokens (and in bpe the 256 bytes) among them."""
    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """The algorithm: byte-level BPE, as most decoders have it; WordPiece (BERT); Unigram (T5)."""
    specials: tuple[str, ...] | None = None
    """Special tokens, from id 0; left out: the usual ones of this kind."""
    chat: bool = True
    """With the chat template, where the special tokens are those that it writes."""
    closed: bool = False
    """Put the end token after a text, as encoders read it."""
    lowercase: bool = False
    """Read text without its capital letters (wordpiece)."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    overwrite: bool = False
    """Replace the tokenizer that is there."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    _spare(config)
    from openbook.data.documents import documents
    from openbook.text.template import CHAT_TEMPLATE
    from openbook.text.tokenizer import Tokenizer

    start = time.monotonic()
    tokenizer = Tokenizer.train(
        _told(documents(config.text, field=config.field)),
        config.vocab,
        config.specials,
        kind=config.kind,
        chat_template=CHAT_TEMPLATE if config.chat else None,
        closed=config.closed,
        lowercase=config.lowercase,
    )
    tokenizer.save(config.out)
    log.status("")
    about = f"{tokenizer.vocab:,} ids, {len(tokenizer.specials)} of them special tokens"
    chat = "with" if tokenizer.templates else "without"
    print(f"{config.out}: {config.kind}, {about}, {chat} a chat template, {time.monotonic() - start:.1f} s")
    return 0


def _spare(config: Config) -> None:
    """An error where a tokenizer would be lost, and with it every model that reads it, or where none can be written."""
    if config.out.exists() and not config.out.is_dir():
        raise TokenizerError(f"'{config.out}' is a file, and --out is a folder: choose another.")
    if (config.out / "config.json").exists():
        raise TokenizerError(
            f"'{config.out}' is a model's folder, and the model needs the tokenizer it has. Choose another --out."
        )
    if (config.out / "tokenizer.json").exists() and not config.overwrite:
        raise TokenizerError(
            f"'{config.out}' holds a tokenizer. Choose another --out, or give --overwrite to replace it."
        )


def _told(texts: Iterator[str]) -> Iterator[str]:
    """The texts as they are, with a status line about how much was read."""
    count = characters = 0
    said = 0.0
    for text in texts:
        count, characters = count + 1, characters + len(text)
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            log.status(f"reading: {count:,} documents, {characters / 1e6:.1f} M characters")
        yield text
    log.status(f"merging: {count:,} documents, {characters / 1e6:.1f} M characters")
