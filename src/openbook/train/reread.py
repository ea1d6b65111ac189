"""What a run has read, listed again from its folder: recipe, prepared text and the row counter of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from openbook import config
from openbook.data.history import SourceRead, read_by
from openbook.data.loader import Reader
from openbook.data.shards import Shards
from openbook.errors import CheckpointError, OpenbookError
from openbook.files import read_json
from openbook.text.tokenizer import Tokenizer
from openbook.train.checkpoint import RECORD
from openbook.train.reading import prepared, reader
from openbook.train.recipe import Recipe

RECIPE, READING = "recipe.toml", "reading.json"


def read_of(run: Path, rows: int | None = None) -> dict[str, SourceRead]:
    """What the run in a folder read of each source, up to its last checkpoint, or in its first `rows` rows.

    CheckpointError: the folder holds no run, or one that has saved nothing yet.
    """
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"'{run}' is not the folder of a run: it has no {RECIPE}. Give the `out` of a recipe.")
    recipe = config.load(Recipe, run / RECIPE)
    return read_by(_reader(recipe, run), 0, _rows(run) if rows is None else rows)


def _reader(recipe: Recipe, run: Path) -> Reader:
    tokenizer = Tokenizer.load(recipe.tokenizer.path or run / "tokenizer")
    data, text = recipe.data, run / "text"
    found = {"text": Shards.open(text, verify=False)} if data.text else {}
    for number in range(1, data.copies * data.sampled + 1):
        found[f"text-{number}"] = Shards.open(text.with_name(f"text-{number}"), verify=False)
    for source in data.sources:
        place = Path(source.path).expanduser() if prepared(source.path) else text / source.called
        found[source.called] = Shards.open(place, verify=False)
    return reader(recipe, found, tokenizer.pad or 0)


def _rows(run: Path) -> int:
    """Rows read up to the end, or up to the newest checkpoint."""
    records = sorted((run / "checkpoints").glob(f"step-*/{RECORD}"), reverse=True)
    for place in [run / READING, *records]:
        try:
            found = read_json(place)
            return int(found["rows"] if place.name == READING else found["run"]["row"])
        except (OpenbookError, KeyError, TypeError, ValueError):
            continue
    raise CheckpointError(f"'{run}' has saved nothing yet: say how many --rows to list.")
