"""What a person writes to get a corpus: sources, steps of cleaning, duplicates, contamination, tokens.

Every part has the defaults that people use for web text; a part that is `None` is left out. Steps run in the order in
which they stand in `Cleaning`: what repairs comes before what judges, and what is cheap before what is dear.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from openbook import config
from openbook.data.clean.classify import Quality
from openbook.data.clean.grams import Perplexity
from openbook.data.clean.language import Language
from openbook.data.clean.repair import Repair
from openbook.data.clean.rules import C4, Rules
from openbook.data.clean.scrub import Scrub
from openbook.data.dedupe.evaluation import evaluations
from openbook.data.dedupe.near import Near
from openbook.data.dedupe.overlap import Overlap
from openbook.data.sources.columns import Columns
from openbook.data.steps import Step
from openbook.errors import ConfigError, nearest


def _least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"`{name}` is {least} or more: got {value}.")


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What is done to each document by itself, in this order."""

    repair: Repair | None = field(default_factory=Repair)
    """Wrongly decoded text, control characters, line ends."""
    language: Language | None = field(default_factory=Language)
    """Which language it is in, and which stay."""

    c4: C4 | None = None
    """The rules of C4, which also take lines out of documents: for web pages."""
    rules: Rules | None = field(default_factory=Rules)
    """The rules of Gopher and FineWeb for the quality of text and for repetition in it."""

    perplexity: Perplexity | None = None
    """How much a model of good text is surprised (`openbook data perplexity`)."""
    quality: Quality | None = None
    """What a classifier takes for good (`openbook data classifier`)."""
    scrub: Scrub | None = field(default_factory=Scrub)
    """Addresses, numbers and keys of people and machines become placeholders."""

    def build(self) -> tuple[Step, ...]:
        """The steps that are wanted, in order."""
        steps = (self.repair, self.language, self.c4, self.rules, self.perplexity, self.quality, self.scrub)
        return tuple(step for step in steps if step is not None)

    def reads(self) -> list[Path]:
        """The files that steps read."""
        models = [step.model for step in (self.perplexity, self.quality) if step is not None]
        return models + ([self.c4.bad_words] if self.c4 is not None and self.c4.bad_words is not None else [])


@dataclass(frozen=True, kw_only=True)
class Source:
    """Text from one place, under one licence."""

    name: str
    """What reports and folders call it: letters, digits, `-`, `_` and `.`."""
    paths: tuple[str, ...]
    """Files, folders and patterns, under the recipe's `root`."""
    columns: Columns = field(default_factory=Columns)
    """Where the text stands in a record, and what is kept beside it."""
    separator: str = "<|endoftext|>"
    """A line that ends a document of a plain-text file."""
    encoding: str = "utf-8"
    """Of its text. Several, by commas: each line is read by the first that fits (`utf-8,cp1252`)."""
    licence: str = "unknown"
    """For the card."""
    origin: str = ""
    """Where it comes from, for the card: an address, a commit."""
    weight: float = 1.0
    """How often it is read in training beside the others, for its size."""
    cleaning: Cleaning | None = None
    """Steps of its own, in place of the recipe's. None: the recipe's."""
    skip: tuple[str, ...] = ()
    """Steps that this source does not go through: "language", "rules" …"""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """What is done about documents and paragraphs that stand there more than once."""

    exact: bool = True
    """Of equal documents (but for case, punctuation and white space) the first stays."""
    near: Near | None = field(default_factory=Near)
    """Of documents that are nearly equal the first stays."""
    paragraphs: int | None = 12
    """Of paragraphs of at least so many words that stand there again, in any document, the first stays. None: all."""
    boilerplate: int | None = None
    """Instead, only paragraphs that occur more often than this go, and then all of them. None: see `paragraphs`."""
    overlap: Overlap | None = None
    """Passages that stand word for word in a document before go, also where the paragraphs differ. It keeps 8 bytes for
    each word of the corpus in a file (fewer with `every`)."""

    def __post_init__(self) -> None:
        _least("paragraphs", self.paragraphs, 1)
        _least("boilerplate", self.boilerplate, 1)


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """Evaluation sets whose text must not stand in the corpus."""

    against: tuple[str, ...] = ()
    """Files and folders of them, under the recipe's `root`."""
    fields: tuple[str, ...] = ()
    """Fields of their records to compare. None named: all texts of a record."""
    words: int = 13
    """Of a run that is looked for; an item's text with fewer is looked for whole …"""
    shortest: int = 8
    """… if it has at least so many."""
    common: int = 10
    """A run that more items than this share is the wording of the task, and is passed over."""
    ignore: int = 50
    """A shared part of less than 2 `words` that stands in more documents than this is a phrase: it stays."""
    action: Literal["cut", "remove"] = "cut"
    """cut: the shared part goes with a margin; remove: the whole document."""
    margin: int = 200
    """Characters beside a shared part that go with it."""
    most: int = 10
    """A document with more shared parts goes as a whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.words:
            raise ConfigError(f"`shortest` is from 1 to `words`: got {self.shortest}, and {self.words} `words`.")
        limits = {"common": self.common, "ignore": self.ignore, "margin": self.margin, "most": self.most}
        for name, value in limits.items():
            _least(name, value, 0)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenizer that is there, or one made from the cleaned text; and the shards."""

    tokenizer: str | None = None
    """Folder or file of a tokenizer. None: train one."""
    vocab: int = 32768
    """Ids at most, of one that is trained."""
    megabytes: float = 200.0
    """Text it is trained on at most, of every source its share."""
    held_out: float = 0.01
    """Part of the text that is kept from training, chosen by hash."""
    shard_tokens: int = 1 << 25
    """Tokens of one file."""

    def __post_init__(self) -> None:
        if not self.megabytes > 0:
            raise ConfigError(f"`megabytes` of text to train a tokenizer on are more than 0: got {self.megabytes}.")
        if not 0 <= self.held_out <= 0.5:
            raise ConfigError(f"`held_out` is a part of the text from 0 to 0.5: got {self.held_out}.")
        if not 1 <= self.shard_tokens < 1 << 31:
            raise ConfigError(f"`shard_tokens` is from 1 to {(1 << 31) - 1}: got {self.shard_tokens}.")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus from a recipe: sources, steps of cleaning, duplicates, evaluation text, tokens."""

    out: str
    """Folder to write; it appears when everything is there."""
    sources: tuple[Source, ...]
    """Where the text comes from."""
    root: str = "."
    """Folder under which the sources' paths lie."""
    cleaning: Cleaning = field(default_factory=Cleaning)
    duplicates: Duplicates = field(default_factory=Duplicates)
    contamination: Contamination = field(default_factory=Contamination)
    tokens: Tokens | None = field(default_factory=Tokens)
    """None: the text alone."""
    block_megabytes: int = 32
    """Text of one block: what one process holds at a time."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("A corpus needs text: give at least one [[sources]] with `name` and `paths`.")
        for name, count in Counter(source.name for source in self.sources).items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ConfigError(f"`sources.name` is a folder too: got {name!r}. Use letters, digits, '-', '_', '.'.")
            if count > 1:
                raise ConfigError(f"Two sources are called {name!r}: give each a name of its own, or one both paths.")
        for source in self.sources:
            known = {step.name for step in (source.cleaning or self.cleaning).build()}
            for name in source.skip:
                if name not in known:
                    raise ConfigError(f"Source {source.name!r} skips a step {name!r}.{nearest(name, known)}")
            if not 0 <= source.weight < math.inf:
                raise ConfigError(f"`weight` of source {source.name!r} is a number, 0 or more: got {source.weight}.")
            if not source.paths:
                raise ConfigError(f"Source {source.name!r} has no `paths`: name files, folders or patterns.")
        _least("block_megabytes", self.block_megabytes, 1)

    def rooted(self) -> tuple[Source, ...]:
        """The sources with their paths under `root`."""
        return tuple(replace(source, paths=self._under_root(source.paths)) for source in self.sources)

    def evaluation(self) -> tuple[str, ...]:
        """The evaluation sets' paths under `root`."""
        return self._under_root(self.contamination.against)

    def _under_root(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        root = Path(self.root).expanduser()
        return tuple(path if path == "-" else str(root / path) for path in paths)

    def reads(self) -> list[Path]:
        """The files besides the sources that decide the result: models, word lists, evaluation sets, the tokenizer."""
        cleanings = {self.cleaning, *(source.cleaning for source in self.sources if source.cleaning is not None)}
        found = [path for cleaning in cleanings for path in cleaning.reads()]
        if self.contamination.against:
            found += [evaluation.path for evaluation in evaluations(self.evaluation())]
        if self.tokens is not None and self.tokens.tokenizer is not None:
            given = Path(self.tokens.tokenizer).expanduser()
            found += sorted(path for path in given.iterdir() if path.is_file()) if given.is_dir() else [given]
        return sorted(set(found))

    def identity(self) -> dict[str, Any]:
        """What decides the result, besides the files: not where it goes nor where the files lie."""
        tree = config.to_tree(self)
        return {key: value for key, value in tree.items() if key not in ("out", "root")}
