"""`openbook describe DIR|config.json`: a model on one page, without its weights being read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Structure with shapes, parameters by part, operations and state per token, memory to train and to serve."""

    dir: Positional[str]
    """Model folder, config.json, or a name in the local Hugging Face cache."""
    context: int | None = None
    """Tokens of a row that work, state and memory are told for. Default: the model's own, at most 8192."""
    rows: int = 1
    """Rows that are told for."""
    json: bool = False
    """Print one JSON object instead of the page."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.models.describe import describe

    description = describe(config.dir, context=config.context, rows=config.rows)
    print(json.dumps(description.as_json(), indent=2) if config.json else description.page().rstrip("\n"))
    return 0
