"""`openbook data inspect`: what is in text files, in a prepared folder of tokens, or in a whole corpus."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openbook.errors import UsageError
from openbook.options import Positional, parse

SHOWN = 300  # characters of a document
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Look into text files, prepared tokens, a corpus, or at what a run has read. What cannot be read is listed."""

    paths: Positional[tuple[str, ...]]
    """Files or folders of text; or one folder that `openbook data prepare` or `openbook pretrain` wrote."""
    field: str = "text"
    """Field of a record that holds the text."""
    sample: int = 0
    """Documents to show, spread over everything."""
    block: int = 1024
    """Tokens of a row, for what packing would waste (prepared tokens only)."""
    rows: int | None = None
    """First rows of a run to list (runs only). None: up to its last checkpoint."""
    json: bool = False
    """Print one JSON object, with every document that a run read."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    if not config.paths:
        raise UsageError(f"Nothing was named: {prog} FILE… or a folder that `openbook data prepare` wrote.")
    if config.block < 1 or config.sample < 0:
        raise UsageError(f"--block is 1 or more, --sample 0 or more: got {config.block} and {config.sample}.")
    folder = Path(config.paths[0]).expanduser()
    if len(config.paths) == 1 and (report := _report(folder)):
        return _corpus(config, folder, report)
    if len(config.paths) == 1 and (folder / "manifest.json").is_file():
        return _shards(config, folder)
    if len(config.paths) == 1 and (folder / "recipe.toml").is_file():
        return _run(config, folder)
    return _text(config)


def _report(folder: Path) -> dict[str, Any] | None:
    """The report of a corpus, None where a folder holds none: other commands write files of that name too."""
    from openbook.data.corpus.report import NAME
    from openbook.files import read_json

    report = read_json(folder / NAME) if (folder / NAME).is_file() else None
    return report if isinstance(report, dict) and report.get("format") == "openbook-corpus" else None


def _corpus(config: Config, folder: Path, report: dict[str, Any]) -> int:
    from openbook.data.corpus.report import summary

    if config.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(summary(report, folder))
        spread = _Spread(config.sample)
        for where, text in _stored(folder) if config.sample else ():
            spread.add(where, text)
        spread.show()
    return 0


def _stored(folder: Path) -> Iterator[tuple[str, str]]:
    from openbook.data.corpus.tally import place
    from openbook.data.corpus.work import read_records

    for file in sorted((folder / "text").glob("*/*.jsonl")):
        for document in read_records(file):
            yield place(document), document.text


def _shards(config: Config, folder: Path) -> int:
    from openbook.data.packing import packing_report
    from openbook.data.shards import Shards

    shards = Shards.open(folder, verify=False)
    training, held = shards.spans(held_out=False), shards.spans(held_out=True)
    packing = {way: vars(waste) for way, waste in packing_report(training, config.block).items()}
    found = {
        "documents": shards.documents, "tokens": shards.tokens, "bytes": shards.bytes,
        "bytes_per_token": round(shards.bytes / max(1, shards.tokens), 4), "vocab": shards.vocab,
        "held_out_tokens": held.tokens, "fingerprint": shards.fingerprint, "tokenizer": shards.tokenizer,
        "run_lengths": _quantiles(training.lengths.tolist()),
        "block": config.block, "packing": packing,
        "sources": [{key: one[key] for key in ("path", "bytes", "sha256")} for one in shards.manifest["sources"]],
    }  # fmt: skip
    print(json.dumps(found, indent=2) if config.json else _pairs(found))
    return 0


def _run(config: Config, folder: Path) -> int:
    """Which documents a training run has read, and how often."""
    from openbook.train.reread import read_of

    found: dict[str, Any] = {}
    for name, read in read_of(folder, config.rows).items():
        found[name] = {"rows": read.rows, "epochs": round(read.epochs, 4), "tokens": read.tokens}
        documents = list(read.documents()) if config.json or config.sample else []
        if config.json:
            found[name]["documents"] = [asdict(document) for document in documents]
        for document in documents[: config.sample] if not config.json else ():
            print(f"{document.path}, document {document.document}, line {document.line}: {document.tokens:,} tokens")
    print(json.dumps(found, indent=2, ensure_ascii=False) if config.json else _pairs(found))
    return 0


def _text(config: Config) -> int:
    from openbook.data.corpus.tally import place
    from openbook.data.documents import find_files
    from openbook.data.sources.blocks import Bad, Columns, blocks, read_block

    bad: list[Bad] = []
    columns: dict[str, Counter[str]] = {}
    lengths: list[int] = []
    spread = _Spread(config.sample)
    files = find_files(config.paths, bad=bad.append)
    for block in blocks(files, bad=bad.append):
        for document in read_block(block, Columns(text=config.field), bad=bad.append):
            size = len(document.text.encode())
            lengths.append(size)
            for name, value in document.meta.items():
                columns.setdefault(name, Counter())[type(value).__name__] += 1
            spread.add(place(document), document.text)
    found: dict[str, Any] = {
        "files": len(files), "documents": len(lengths), "bytes": sum(lengths), "lengths": _quantiles(lengths),
        "columns": {name: dict(kinds) for name, kinds in columns.items()},
        "bad": [{"path": str(one.path), "line": one.line, "why": one.why} for one in bad],
    }  # fmt: skip
    if config.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(_pairs({key: value for key, value in found.items() if key != "bad"}))
        for one in bad:
            print(f"{'to know' if one.note else 'could not be read'}: {one}")
        spread.show()
    return 0


class _Spread:
    """Some documents out of many, evenly spread: when too many are kept, the spacing doubles."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.every, self.seen = wanted, 1, 0
        self.kept: list[tuple[int, str, str]] = []

    def add(self, place: str, text: str) -> None:
        if self.seen % self.every == 0 and self.wanted:
            self.kept.append((self.seen, place, text[: SHOWN + 1]))
        self.seen += 1
        if len(self.kept) >= 2 * self.wanted > 0:
            self.every *= 2
            self.kept = [one for one in self.kept if one[0] % self.every == 0]

    def show(self) -> None:
        for _, place, text in self.kept[: self.wanted]:
            print(f"\n── {place}\n{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}")


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {f"{q:.0%}": ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES} if ordered else {}


def _pairs(found: dict[str, Any]) -> str:
    lines = []
    for key, value in found.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"  {' '.join(str(part) for part in one.values())}" for one in value)]
        elif isinstance(value, dict):
            lines.append(f"{key}: " + ", ".join(f"{name} {_plain(part)}" for name, part in value.items()))
        else:
            lines.append(f"{key}: {_plain(value)}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
