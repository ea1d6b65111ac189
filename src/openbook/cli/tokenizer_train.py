"""`openbook tokenizer train`: learn a byte-level BPE tokenizer from text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook import log
from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Learn a byte-level BPE tokenizer from .txt and .jsonl files or folders of them, and save it as a folder."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text."""
    out: Path
    """Folder to write: tokenizer.json and tokenizer_config.json."""
    vocab: int = 8192
    """Ids at most, the 256 bytes and the special tokens among them."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.documents import documents
    from openbook.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(_told(documents(config.text, field=config.field)), config.vocab)
    tokenizer.save(config.out)
    log.status("")
    print(f"{config.out}: {tokenizer.vocab} ids, {len(tokenizer.specials)} of them special tokens")
    return 0


def _told(texts: Iterator[str]) -> Iterator[str]:
    """The texts as they are, with a status line about how much was read."""
    count = characters = 0
    for text in texts:
        count, characters = count + 1, characters + len(text)
        if count % 256 == 0:
            log.status(f"reading: {count:,} documents, {characters / 1e6:.1f} M characters")
        yield text
