"""`openbook data prepare`: text into memory-mapped shards of token ids, or a recipe into a whole clean corpus."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openbook import config, log
from openbook.data.corpus.recipe import Corpus
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.data.corpus.executor import Executor
    from openbook.data.corpus.run import Told
    from openbook.data.prepare import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Turn text into memory-mapped shards of token ids; or, with a RECIPE.toml in place of the text, into a corpus that
    is cleaned, free of duplicates and of evaluation text, and tokenised. The same command goes on where it stopped."""

    text: Positional[tuple[str, ...]]
    """Files or folders of text; or one recipe, whose keys are then options too (see: RECIPE.toml --help)."""
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


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(Corpus):
    """A corpus from a recipe: sources, steps of cleaning, duplicates, evaluation text, tokens."""

    processes: int | None = None
    """How many work side by side on this machine. None: one for each core."""
    cluster: Literal["none", "ray"] = "none"
    """Who does the blocks. ray: a Ray cluster, this machine if there is no other; all see the same folders."""
    overwrite: bool = False
    """Replace a corpus that differs."""
    json: bool = False
    """Print the report as one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    if args and args[0].endswith(".toml"):
        return _corpus(args[0], args[1:], prog)
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


def _corpus(path: str, args: Sequence[str], prog: str) -> int:
    """The verb with a recipe."""
    given = config.load(CorpusConfig, path, args, prog=f"{prog} {path}")
    recipe = Corpus(**{field.name: getattr(given, field.name) for field in fields(Corpus)})
    from openbook.data.corpus.report import NAME, summary
    from openbook.data.corpus.run import build
    from openbook.files import read_json

    out = build(recipe, executor=_executor(given), progress=_Telling(), overwrite=given.overwrite)
    log.status("")
    report = read_json(out / NAME)
    print(json.dumps(report, indent=2, ensure_ascii=False) if given.json else summary(report, out))
    return 0


def _executor(given: CorpusConfig) -> Executor:
    if given.cluster == "ray":
        from openbook.data.corpus.cluster import Ray

        return Ray()
    from openbook.data.corpus.executor import local

    return local(given.processes)


class _Telling:
    """A status line with how far a stage is and how long it will take; where there is no terminal, a line a stage."""

    def __init__(self) -> None:
        self.stage, self.began = "", 0.0

    def __call__(self, told: Told) -> None:
        from openbook.data.corpus.page import amount, duration

        now = time.monotonic()
        if told.stage != self.stage:
            self.stage, self.began = told.stage, now
            log.note(f"{told.stage}{f' {amount(told.total)}' if told.total > 1 else ''}")
        share = told.done / max(1, told.total)
        passed = now - self.began
        left = f", {duration(passed / share - passed)} left" if 0 < share < 1 and passed > 2 else ""
        detail = f", {told.detail}" if told.detail else ""
        log.status(f"{told.stage}: {share:.0%}{left}{detail}")
