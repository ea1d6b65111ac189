"""`openbook tokenizer trim`: the part of a vocabulary that some text needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openbook.cli.surgery import Output, load_model, load_tokenizer, spare, write
from openbook.options import Positional, Repeated, parse


@dataclass(frozen=True, kw_only=True)
class Config(Output):
    """Keep only the tokens that some text needs, which is then cut as before, and the rows of a model for them."""

    dir: Positional[str]
    """Folder of a model, or of a tokenizer alone."""
    text: Repeated[tuple[str, ...]]
    """Files or folders of text; may be given several times."""
    keep: Repeated[tuple[str, ...]] = ()
    """A token to keep besides, as the vocabulary spells it; may be given several times."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    spare(config, config.dir)
    from openbook.data.documents import documents
    from openbook.text.surgery import trim

    tokenizer = load_tokenizer(config.dir)
    change = trim(tokenizer, documents(config.text, field=config.field), keep=config.keep)
    write(config, change, load_model(config.dir), before=tokenizer.vocab)
    return 0
