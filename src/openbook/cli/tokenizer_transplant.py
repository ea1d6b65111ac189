"""`openbook tokenizer transplant`: another tokenizer for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openbook.cli.surgery import Output, load_model, load_tokenizer, spare, write
from openbook.errors import CheckpointError
from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config(Output):
    """Give a model another tokenizer: a row that both have is copied, any other is the mean of its pieces' rows."""

    dir: Positional[str]
    """Folder of the model whose rows are taken."""
    tokenizer: str
    """Folder of the tokenizer that is wanted; with --body theirs, of a model too."""
    body: Literal["own", "theirs"] = "own"
    """Which model gets the rows: the one they are taken from, or the one of --tokenizer (of the same width)."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    spare(config, config.dir, config.tokenizer)
    from openbook.text.surgery import transplant

    old, wanted = load_tokenizer(config.dir), load_tokenizer(config.tokenizer)
    donor = load_model(config.dir)
    body = donor if config.body == "own" else load_model(config.tokenizer)
    for folder, model in ((config.dir, donor), (config.tokenizer, body)):
        if model is None:
            raise CheckpointError(f"There is no model in '{folder}' (no config.json): its rows are what it is about.")
    change = transplant(old, wanted)
    write(config, change, body, donor=None if config.body == "own" else donor, before=old.vocab)
    return 0
