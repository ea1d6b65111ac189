"""`openbook data perplexity`: a small model of good text, which says how surprising other text is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Learn from good text how surprising text is. The file is for the step `perplexity` of `openbook data prepare`."""

    good: Positional[tuple[str, ...]]
    """Files or folders of good documents."""
    out: Path
    """File to write."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    order: int = 5
    """Bytes of the longest runs that are counted, 2 to 8."""
    held_out: int = 20
    """Every so many documents one is kept from the model, to say what perplexities are usual."""
    most_megabytes: int = 16
    """How much is read; learning takes some 40 times that in memory."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.clean.grams import train
    from openbook.data.documents import documents

    texts = documents(config.good, field=config.field)
    model = train(texts, order=config.order, held_out=config.held_out, most_bytes=config.most_megabytes << 20)
    model.save(config.out)
    usual = {str(percent): round(model.at_percentile(percent), 3) for percent in (1, 50, 90, 99)}
    if config.json:
        print(json.dumps({"out": str(config.out), "percentiles": usual}, indent=2))
    else:
        print(f"{config.out}: half of the good text is below {usual['50']} per byte, 99% of it below {usual['99']}")
    return 0
