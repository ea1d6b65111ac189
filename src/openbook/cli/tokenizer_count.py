"""`openbook tokenizer count`: how many tokens a tokenizer makes of text, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from openbook import log
from openbook.errors import InputError, UsageError
from openbook.options import Positional, Repeated, parse

if TYPE_CHECKING:
    from openbook.text.compare.counting import Count


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count documents, bytes, characters and tokens of text with a tokenizer, and what the tokens cost."""

    dir: Positional[str]
    """Folder of a tokenizer or a model, or a file of a tokenizer."""
    text: Positional[tuple[str, ...]]
    """Files or folders of text; - is plain text from standard input."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    price: Repeated[tuple[str, ...]] = ()
    """Price of a million tokens, as 2.5; several with names, as --price input=2.5 --price output=10."""
    currency: str = ""
    """What stands after a cost, as EUR."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.text.compare.counting import Count, count, prices
    from openbook.text.tokenizer import Tokenizer

    if not config.text:
        raise InputError("No text was named: give a .txt or .jsonl file, a folder of them, or - for standard input.")
    asked = prices(config.price)
    if config.currency and not asked:
        raise UsageError("--currency is of no use without --price, the price of a million tokens.")
    tokenizer = Tokenizer.load(config.dir)
    rows: dict[str, Count] = {}
    total = Count()
    for name, texts in _sources(config):
        rows[name] = count(tokenizer, texts, partial(_tell, total))
        total += rows[name]
    log.status("")
    print(_json(rows, total, tokenizer.vocab, asked) if config.json else _table(rows, total, asked, config.currency))
    return 0


def _sources(config: Config) -> Iterator[tuple[str, Iterator[str]]]:
    """The name of each file, and its documents as they are read."""
    from openbook.data.documents import find_files, read_documents

    for path in find_files(config.text, standard_input=True):
        yield str(path), (document.text for document in read_documents(path, field=config.field))


def _tell(before: Count, since: Count) -> None:
    count = before + since
    log.status(f"counting: {count.documents:,} documents, {count.bytes / 1e6:.1f} MB, {count.tokens:,} tokens")


def _json(rows: Mapping[str, Count], total: Count, vocab: int, asked: Mapping[str, float]) -> str:
    found: dict[str, Any] = {
        "vocab": vocab,
        "files": [{"path": path, **row.plain()} for path, row in rows.items()],
        "total": {"path": "total", **total.plain()},
    }
    if asked:
        found["cost"] = {name or "tokens": cost for name, cost in total.cost(asked).items()}
    return json.dumps(found, indent=2, ensure_ascii=False)


def _table(rows: Mapping[str, Count], total: Count, asked: Mapping[str, float], currency: str) -> str:
    lines = [f"{'documents':>10} {'bytes':>14} {'characters':>14} {'tokens':>14} {'bytes/token':>12}  file"]
    for path, row in {**rows, "total": total}.items() if len(rows) > 1 else rows.items():
        counts = f"{row.documents:>10,} {row.bytes:>14,} {row.characters:>14,} {row.tokens:>14,}"
        lines.append(f"{counts} {row.bytes_per_token:>12.2f}  {path}")
    for name, cost in total.cost(asked).items():
        said = f"{cost:,.2f}" if cost >= 1 else f"{cost:.4g}"
        price = f"at {asked[name]:g} for a million tokens"
        lines.append(f"{f'{name}: ' if name else ''}{said}{f' {currency}' if currency else ''} {price}")
    return "\n".join(lines)
