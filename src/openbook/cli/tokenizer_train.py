"""`openbook tokenizer train`: learn a byte-level BPE tokenizer from text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook import log
from openbook.errors import TokenizerError
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
    overwrite: bool = False
    """Replace the tokenizer that is there."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    _spare(config)
    from openbook.data.documents import documents
    from openbook.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(_told(documents(config.text, field=config.field)), config.vocab)
    tokenizer.save(config.out)
    log.status("")
    print(f"{config.out}: {tokenizer.vocab} ids, {len(tokenizer.specials)} of them special tokens")
    return 0


def _spare(config: Config) -> None:
    """An error where a tokenizer would be lost, and with it every model that reads it."""
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
    for text in texts:
        count, characters = count + 1, characters + len(text)
        if count % 256 == 0:
            log.status(f"reading: {count:,} documents, {characters / 1e6:.1f} M characters")
        yield text
