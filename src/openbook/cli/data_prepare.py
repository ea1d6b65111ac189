"""`openbook data prepare`: text into memory-mapped shards of token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbook import log
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.data.prepare import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Turn .txt and .jsonl files into memory-mapped shards of token ids. The same command goes on where it stopped."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text."""
    tokenizer: str
    """Folder of the tokenizer."""
    out: Path
    """Folder to write; it appears when everything is there."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    held_out: float = 0.01
    """Part of the text that is kept from training, chosen by hash."""
    overwrite: bool = False
    """Replace prepared text that differs."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.prepare import prepare
    from openbook.data.shards import read_manifest
    from openbook.text.tokenizer import Tokenizer

    prepare(
        config.text,
        Tokenizer.load(config.tokenizer),
        config.out,
        field=config.field,
        held_out=config.held_out,
        overwrite=config.overwrite,
        progress=_tell,
    )
    log.status("")
    manifest = read_manifest(config.out)
    counts = {key: manifest[key] for key in ("documents", "tokens", "bytes")} | {"shards": len(manifest["shards"])}
    if config.json:
        print(json.dumps({"out": str(config.out), **counts}, indent=2))
    else:
        print(f"{config.out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return 0


def _tell(progress: Progress) -> None:
    share = progress.bytes / max(1, progress.bytes_total)
    log.status(f"preparing: {share:.0%}, {progress.documents:,} documents, {progress.tokens:,} tokens")
