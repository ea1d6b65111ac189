"""`openbook tokenizer extend`: new tokens for a tokenizer and its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openbook.cli.surgery import Output, load_model, load_tokenizer, spare, write
from openbook.options import Positional, Repeated, parse


@dataclass(frozen=True, kw_only=True)
class Config(Output):
    """Add tokens behind a vocabulary, and rows for them to the model that reads it."""

    dir: Positional[str]
    """Folder of a model, or of a tokenizer alone."""
    token: Repeated[tuple[str, ...]]
    """A new token; may be given several times."""
    special: bool = False
    """Text is never read as these tokens; templates and code write them."""
    start: Literal["mean", "pieces"] = "pieces"
    """What a new row begins as. pieces: the mean of what its text was cut into; mean: of all rows."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    spare(config, config.dir)
    from openbook.text.surgery import extend

    tokenizer = load_tokenizer(config.dir)
    change = extend(tokenizer, config.token, special=config.special, start=config.start)
    write(config, change, load_model(config.dir), before=tokenizer.vocab)
    return 0
