"""`openbook data audit`: who and what a corpus talks about, and weights that balance it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import field as field_
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from openbook import log
from openbook.errors import MissingExtra, UsageError
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.data.audit.count import Counts
    from openbook.data.dedupe.corpus import Texts

OPEN = 200  # files that are written at the same time


@dataclass(frozen=True, kw_only=True)
class Config:
    """Say who and what a corpus talks about: people, places, years, topics, languages, sources, how hard it reads; and
    give weights that bring it to chosen shares: --target.topic.science 0.2 --target.gender.women 0.3. The word lists
    are short and English: data/audit/words.toml says what they can show and what not."""

    paths: Positional[tuple[str, ...]]
    """Files or folders of text. What cannot be read is left out and listed."""
    field: str = "text"
    """Field of a record that holds the text."""
    source_field: str = "source"
    """Field of a record that names its source. Where there is none, the name of the file does."""
    target: dict[str, float] = field_(default_factory=dict)
    """AXIS.CATEGORY SHARE: shares of the words to reach; the axes are source, language, topic and gender."""
    bound: float = 5.0
    """How many times more, or less, than the average any part may be read."""
    split: Path | None = None
    """Folder to write the documents of every part into, and a `mixture.toml` that reads them in the target shares."""
    topics: int = 12
    """Groups of documents to look for."""
    languages: bool = True
    """Identify languages that records do not say (extra `data`)."""
    seed: int = 0
    """Of the topics and the chances."""
    out: Path | None = None
    """File to write the report into, as JSON."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    targets = _targets(config)
    if config.split is not None and not targets:
        raise UsageError(
            f"--split writes the parts that targets weigh: give one, like: {prog} … --target.topic.war 0.1"
        )
    from openbook.data.audit.count import Counts
    from openbook.data.audit.report import page, report, weights
    from openbook.data.dedupe.corpus import Texts, unread_of
    from openbook.files import write_json

    counts = Counts(language=_identifier() if config.languages else None, source_field=config.source_field)
    texts = Texts(config.paths, config.field)
    for document in texts():
        counts.add(document)
        if counts.size.documents % 200 == 0:
            log.status(f"counting: {counts.size.documents:,} documents, {counts.size.words:,} words")
    log.status("")
    found = report(counts, topics=config.topics, seed=config.seed) | {"unread": unread_of(texts)}
    if targets:
        found["weights"] = weights(counts, targets, config.bound)
    if config.split is not None:
        found["split"] = _split(texts, counts, targets, config)
    if config.out is not None:
        write_json(config.out, found)
    print(json.dumps(found, indent=2, ensure_ascii=False) if config.json else page(found))
    for bad in [] if config.json else found["unread"]:
        print(f"could not be read: {bad}")
    return 0


def _targets(config: Config) -> dict[str, dict[str, float]]:
    targets: dict[str, dict[str, float]] = defaultdict(dict)
    for key, share in config.target.items():
        axis, dot, category = key.partition(".")
        if not dot or not category or not isinstance(share, int | float):
            raise UsageError(
                f"A target is AXIS.CATEGORY and a share: --target.topic.science 0.2. Got '{key}' {share!r}."
            )
        targets[axis][category] = float(share)
    return dict(targets)


def _identifier() -> Callable[[str], str] | None:
    """What says the language of a text, None (said once) without the extra."""
    from openbook.data.clean.language import Language

    step = Language()
    try:
        step.identify("some text")
    except MissingExtra as error:
        log.note(f"{error} Without it languages are those that records say.")
        return None
    return lambda text: step.identify(text)[0]


def _split(texts: Texts, counts: Counts, targets: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Write every document into the file of its part, and the recipe lines that mix the parts."""
    from openbook.data.audit.report import weigh
    from openbook.files import write_atomic

    folder = config.split
    assert folder is not None
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"'{folder}' is not empty: choose another folder for --split.")
    folder.mkdir(parents=True, exist_ok=True)
    axes, cells, balanced, _ = weigh(counts, targets, config.bound)
    shares: dict[str, float] = defaultdict(float)
    for place, weight in cells:
        shares[_safe(place.name(axes))] += weight * counts.cells[place].words / counts.size.words
    if len(shares) > OPEN:
        raise UsageError(f"The targets make {len(shares)} parts, {OPEN} at most: balance fewer axes at once.")
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for document in texts():
            name = _safe(counts.place(document).name(axes))
            if name in shares:
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{name}.jsonl").open("w", encoding="utf-8"))
                files[name].write(json.dumps({**document.meta, "text": document.text}, ensure_ascii=False) + "\n")
    lines = [
        f'[[data.sources]]\nname = "{name}"\npath = {json.dumps(str(folder / f"{name}.jsonl"))}\nweight = {share:.6g}\n'
        for name, share in sorted(shares.items())
        if name in files
    ]
    write_atomic(folder / "mixture.toml", "\n".join(lines))
    return {"folder": str(folder), "parts": dict(sorted(shares.items())), "missed": balanced.missed}


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".") or "_"
