"""The texts of a run as ids on the disk, and the reader of their rows; what was read, written down at the end.

OUT/text/             the text, prepared; with several sources OUT/text/NAME for each that was not prepared before
OUT/text-1/ …         with `data.dropout` or `data.alpha`: the same text cut in other ways, to train on in turn
OUT/reading.json      rows, epochs of each source, what packing costs
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openbook.data.copies import Copies, Sampled
from openbook.data.documents import documents, find_files
from openbook.data.encoding import Encoder
from openbook.data.loader import Loader, Reader
from openbook.data.mixture import Change, Mixture, Source
from openbook.data.packing import packing_report
from openbook.data.prepare import Progress, prepare
from openbook.data.shards import MANIFEST, Shards
from openbook.errors import ConfigError, DataError
from openbook.files import write_json
from openbook.log import note, status
from openbook.text.tokenizer import Tokenizer
from openbook.train.recipe import DataPart, Recipe


def prepared(path: str) -> bool:
    """Whether a source is text that was prepared before."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def check_paths(recipe: Recipe) -> None:
    """Refuse paths that lead nowhere, prepared text without its tokenizer, and changes at unknown places."""
    changes(recipe)
    for group in recipe.data.groups():
        if recipe.data.sources and prepared(group[0]):
            if recipe.tokenizer.path is None:
                raise ConfigError(f"'{group[0]}' is prepared text: give its tokenizer as `tokenizer.path`.")
        else:
            find_files(group)


def texts(recipe: Recipe) -> Iterator[str]:
    """What a tokenizer is trained on: `tokenizer.megabytes` at most, the same of each source."""
    groups = recipe.data.groups()
    for group in groups:
        left = recipe.tokenizer.megabytes * 1e6 / len(groups)
        for text in documents(group, field=recipe.data.field):
            yield text
            left -= len(text.encode())
            if left <= 0:
                break


def prepare_texts(recipe: Recipe, out: Path, tokenizer: Tokenizer, *, overwrite: bool) -> dict[str, Shards]:
    """Every source's ids, made if they are not there; one that the recipe does not name is called `text`."""

    def tell(progress: Progress) -> None:
        status(f"preparing the text: {progress.bytes / max(progress.bytes_total, 1):.0%}, {progress.tokens:,} tokens")

    data = recipe.data

    def ids_of(paths: tuple[str, ...], folder: Path, encoder: Encoder = tokenizer) -> Shards:
        return prepare(
            paths, encoder, folder, field=data.field, held_out=data.held_out, overwrite=overwrite, progress=tell
        )

    cuts = {
        f"text-{number}": Sampled(tokenizer, dropout=data.dropout, alpha=data.alpha, copy=number)
        for number in range(1, data.copies * data.sampled + 1)
    }
    found = {"text": ids_of(data.text, out)} if data.text else {}
    found |= {name: ids_of(data.text, out.with_name(name), cut) for name, cut in cuts.items()}
    for source in recipe.data.sources:
        if not prepared(source.path):
            found[source.called] = ids_of((source.path,), out / source.called)
            continue
        shards = found[source.called] = Shards.open(Path(source.path).expanduser())
        if shards.tokenizer != tokenizer.fingerprint:
            raise DataError(f"'{source.path}' was prepared with another tokenizer than '{recipe.tokenizer.path}'.")
    status("")
    return found


def reader(recipe: Recipe, shards: dict[str, Shards], pad: int) -> Reader:
    """The rows of the recipe's one text, of its copies in turn, or of the mixture of its sources."""
    data, seed = recipe.data, recipe.train.seed
    if not data.sources:
        plain, *copies = (
            Loader(
                one, block=data.block, seed=seed + 1_000_003 * number, packing=data.packing,
                document_mask=data.document_mask, pad=pad, curriculum=data.curriculum, blur=data.blur,
            )
            for number, one in enumerate(shards.values())
        )  # fmt: skip
        return Copies(plain, copies) if copies else plain
    sources = [
        Source(name=part.called, shards=shards[part.called], weight=part.weight, epochs=part.epochs)
        for part in data.sources
    ]
    return Mixture(
        sources, block=data.block, seed=seed, packing=data.packing, document_mask=data.document_mask, pad=pad,
        curriculum=data.curriculum, blur=data.blur,
        temperature=data.temperature, changes=changes(recipe), linear=data.schedule.shape == "linear",
    )  # fmt: skip


def changes(recipe: Recipe) -> list[Change]:
    """The changes of weights, at rows of the training."""
    steps = recipe.train.steps
    found = []
    for change in recipe.data.schedule.changes:
        if 0 < change.at < 1 and steps is None:
            raise ConfigError(
                f"`at = {change.at}` in [data.schedule] is a share of a run whose length is not known before it is "
                "measured: give `train.steps`, or `at` in rows."
            )
        row = round(change.at * recipe.train.rows_of(steps)) if change.at < 1 and steps else round(change.at)
        found.append(Change(row=row, weights=change.weights))
    return found


def describe_packing(data: DataPart, rows: Reader) -> dict[str, dict[str, Any]]:
    """What packing costs, by source; said, too."""
    found = {}
    for name, loader in rows.parts().items():
        wastes = packing_report(loader.spans, data.block)
        found[name] = {way: vars(waste) for way, waste in wastes.items()}
        said = "; ".join(
            f"{way} {waste.padding:.1%} padding, {waste.cut:.1%} of the texts cut, {waste.context:.1%} of the tokens "
            f"without all that stands before them"
            for way, waste in sorted(wastes.items(), key=lambda pair: pair[0] != data.packing)
        )
        note(f"{name} in rows of {data.block} tokens: {said}.")
    return found


def report(path: Path, rows: Reader, row: int, packing: dict[str, dict[str, Any]]) -> None:
    """Write down, and say, what a run of `row` rows has read."""
    epochs = rows.seen(row)
    note("Read " + ", ".join(f"{count:.2f} epochs of {name}" for name, count in epochs.items()) + ".")
    write_json(path, {"rows": row, "epochs": epochs, "packing": packing})
