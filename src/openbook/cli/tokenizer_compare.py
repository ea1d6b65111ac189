"""`openbook tokenizer compare`: several tokenizers side by side, as a table, a picture, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbook import log
from openbook.errors import InputError, UsageError
from openbook.options import Positional, parse

if TYPE_CHECKING:
    from openbook.text.compare.report import Measured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare tokenizers on the same text: length, words, languages, numbers, code, what is lost, rough speed."""

    dirs: Positional[tuple[str, ...]]
    """Folders of tokenizers or models, or files of tokenizers."""
    text: tuple[str, ...]
    """Files or folders of text."""
    languages: Path | None = None
    """A .zip or folder of LANGUAGE.txt that say the same, such as udhr2.zip of the NLTK data."""
    out: Path | None = None
    """Picture to write (.png)."""
    limit: float = 10.0
    """Million characters of the text to read, from each file its share."""
    field: str = "text"
    """Field of a .jsonl record that holds the text."""
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    _check(config)
    from openbook.text.compare.languages import read_languages
    from openbook.text.compare.report import measure, table
    from openbook.text.compare.words import count_words
    from openbook.text.tokenizer import Tokenizer

    tokenizers = {name: Tokenizer.load(path) for name, path in _names(config.dirs).items()}
    languages = read_languages(config.languages) if config.languages else {}
    texts, left_out = _texts(config)
    words = count_words(texts)
    measured: list[Measured] = []
    for number, (name, tokenizer) in enumerate(tokenizers.items(), 1):
        log.status(f"measuring: {name}, {number} of {len(tokenizers)}")
        measured.append(measure(name, tokenizer, texts, words, languages))
    log.status("")
    if config.json:
        print(json.dumps({"tokenizers": [one.plain() for one in measured]}, indent=2, ensure_ascii=False))
    else:
        print(table(measured))
    if left_out:
        log.note(f"measured on the first {config.limit:g} million characters of the text; --limit takes more")
    if config.out:
        _draw(measured, config.out, config.text)
    return 0


def _check(config: Config) -> None:
    """Refuse before any work what would be refused after it."""
    from openbook.text.compare.picture import MOST

    if not config.dirs:
        raise UsageError("No tokenizer was named: give the folders of one or more, then --text FILES.")
    if not config.limit > 0:
        raise UsageError(f"--limit is more than 0: got {config.limit:g}.")
    if config.out and config.out.suffix.lower() != ".png":
        raise UsageError(f"The picture is a .png: got --out '{config.out}'.")
    if config.out and len(config.dirs) > MOST:
        raise UsageError(f"A picture holds {MOST} tokenizers at most: got {len(config.dirs)}.")
    if config.out:
        from openbook.train.curve import blank_figure

        blank_figure("The picture of a comparison", (1, 1))


def _names(paths: Sequence[str]) -> dict[str, str]:
    """A short name for each tokenizer: the last part of its path, or, where two have the same, the whole."""
    short = [Path(path).name or path for path in paths]
    named = {name if short.count(name) == 1 else path: path for name, path in zip(short, paths, strict=True)}
    if len(named) < len(paths):
        raise UsageError("The same tokenizer is named twice.")
    return named


def _texts(config: Config) -> tuple[list[str], bool]:
    """The documents within the limit, and whether others were left out."""
    from openbook.data.documents import find_files, read_documents

    files = find_files(config.text, standard_input=True)
    share = max(1, int(config.limit * 1e6 / len(files)))
    texts: list[str] = []
    left_out = False
    for path in files:
        left = share
        for document in read_documents(path, field=config.field):
            if left <= 0:
                left_out = True
                break
            left_out |= len(document.text) > left
            texts.append(document.text[:left])
            left -= len(document.text)
    if not any(text.strip() for text in texts):
        raise InputError("There is no text to compare on.")
    return texts, left_out


def _draw(measured: Sequence[Measured], out: Path, text: Sequence[str]) -> None:
    from openbook.text.compare import picture
    from openbook.train.curve import blank_figure, write_png

    size = measured[0].use.counted.bytes / 1e6
    names = ", ".join(Path(path).name for path in text[:3]) + (" …" if len(text) > 3 else "")
    figure = blank_figure("The picture of a comparison", picture.size(measured), dpi=110)
    said = f"{size:.1f} MB" if size >= 1 else f"{size * 1000:.3g} kB"
    many = "1 tokenizer" if len(measured) == 1 else f"{len(measured)} tokenizers"
    picture.draw(measured, figure, f"{names}, {said}, in {many}")
    write_png(figure, out)
    log.note(f"picture: {out}")
