"""`openbook data classifier`: a classifier of good text, from good and bad examples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Learn from examples which text is good. The file is for the step `quality` of `openbook data prepare`."""

    good: Positional[str]
    """File or folder of good documents."""
    bad: Positional[str]
    """File or folder of bad ones: of the same subjects, for subjects are learned too."""
    out: Path
    """File to write."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    sample: int = 20_000
    """Characters that are read of each document."""
    epochs: int = 5
    """How often each document is learned from."""
    seed: int = 0
    """Of the order in which they are."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.clean.classify import train
    from openbook.data.documents import documents

    classifier, report = train(
        documents(config.good, field=config.field),
        documents(config.bad, field=config.field),
        sample=config.sample,
        epochs=config.epochs,
        seed=config.seed,
    )
    classifier.save(config.out)
    if config.json:
        print(json.dumps({"out": str(config.out), **dataclasses.asdict(report)}, indent=2))
    else:
        print(f"{config.out}: learned from {report.good:,} good and {report.bad:,} bad documents")
        print(
            f"on {report.judged:,} it has not seen: area under the curve {report.area:.3f}, "
            f"accuracy {report.accuracy:.1%}, Brier score {report.error:.3f}"
        )
    return 0
