"""`openbook tokenizer count`: how many tokens a tokenizer makes of text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from openbook.errors import InputError
from openbook.options import Positional, parse

Row = dict[str, str | int]
TOGETHER = 256  # documents encoded at once


@dataclass(frozen=True, kw_only=True)
class Config:
    """Count the tokens, bytes and bytes per token of text files, with the tokenizer of a folder."""

    dir: Positional[str]
    """Folder of a tokenizer or a model, or a tokenizer.json."""
    text: Positional[tuple[str, ...]]
    """Files or folders of text."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.documents import find_files, read_documents
    from openbook.text.tokenizer import Tokenizer

    if not config.text:
        raise InputError("No text was named: give a .txt or .jsonl file, or a folder of them.")
    tokenizer = Tokenizer.load(config.dir)
    rows: list[Row] = []
    for path in find_files(config.text):
        texts = [document.text for document in read_documents(path, field=config.field)]
        groups = (texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER))
        tokens = sum(len(ids) for group in groups for ids in tokenizer.encode_batch(group))
        size = sum(len(text.encode("utf-8")) for text in texts)
        rows.append({"path": str(path), "documents": len(texts), "bytes": size, "tokens": tokens})
    print(_json(rows, tokenizer.vocab) if config.json else _table(rows))
    return 0


def _total(rows: Sequence[Row]) -> Row:
    return {"path": "total", **{key: sum(int(row[key]) for row in rows) for key in ("documents", "bytes", "tokens")}}


def _json(rows: Sequence[Row], vocab: int) -> str:
    return json.dumps({"vocab": vocab, "files": rows, "total": _total(rows)}, indent=2, ensure_ascii=False)


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'documents':>10} {'bytes':>14} {'tokens':>14} {'bytes/token':>12}  file"]
    for row in [*rows, _total(rows)] if len(rows) > 1 else rows:
        ratio = int(row["bytes"]) / max(1, int(row["tokens"]))
        lines.append(f"{row['documents']:>10,} {row['bytes']:>14,} {row['tokens']:>14,} {ratio:>12.2f}  {row['path']}")
    return "\n".join(lines)
