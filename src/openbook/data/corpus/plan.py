"""The work of a corpus as blocks, and where the result of each lies while it is made.

.NAME.part/                    beside the target NAME, which appears when everything is there
  plan.json                    what is being made: the recipe, the files, the blocks
  clean/000012.jsonl .npz .json   documents of a block that the steps kept, their marks, its ledger
  choice/000012.npz             what comparing decided about them
  text/SOURCE/000012.jsonl      documents of the corpus        text/000012.json   the ledger of that
  shards/SOURCE/               its tokens (data/prepare.py)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbook.data.corpus.recipe import Corpus
from openbook.data.documents import find_files
from openbook.data.sources.blocks import Bad, Block, blocks
from openbook.errors import DataError, OpenbookError
from openbook.files import explain_os_error, read_json, write_json

PLAN = "plan.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One block of one source, numbered through the corpus; documents are ordered by that number."""

    number: int
    source: int  # index of the source in the recipe
    block: Block

    @property
    def name(self) -> str:
        """The stem of the files that hold its results."""
        return f"{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts of a corpus, and what it is made of."""

    parts: tuple[Part, ...]
    files: tuple[dict[str, Any], ...]  # source, path, bytes, modified
    bad: tuple[Bad, ...]  # files that cannot be opened, links that lead nowhere, notes
    identity: str

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file["bytes"] for file in self.files)


def make_plan(recipe: Corpus) -> Plan:
    """The plan of a corpus. DataError: a file stands in two sources, a file that the recipe names is not there."""
    size = recipe.block_megabytes << 20
    parts: list[Part] = []
    files: list[dict[str, Any]] = []
    owner: dict[Path, str] = {}
    bad: list[Bad] = []
    for index, source in enumerate(recipe.rooted()):
        found = find_files(source.paths, bad=bad.append)
        for path in found:
            real = path.resolve()
            if owner.setdefault(real, source.name) != source.name:
                both = f"{owner[real]!r} and {source.name!r}"
                raise DataError(f"'{path}' is in two sources, {both}: leave it out of one.")
            files.append({"source": source.name, **_facts(path)})
        for block in blocks(found, size, separator=source.separator, bad=bad.append):
            parts.append(Part(len(parts), index, block))
    whole = json.dumps([VERSION, recipe.identity(), files, list(map(_facts, recipe.reads()))], sort_keys=True)
    return Plan(tuple(parts), tuple(files), tuple(bad), hashlib.sha256(whole.encode()).hexdigest()[:32])


def _facts(path: Path) -> dict[str, Any]:
    """What tells whether a file is still the one that it was."""
    try:
        status = path.stat()
    except OSError as error:
        raise explain_os_error(error, path, "read") from error
    return {"path": str(path), "bytes": status.st_size, "modified": status.st_mtime_ns}


def take_up(folder: Path, plan: Plan) -> bool:
    """Whether `folder` holds all of this very plan. If it holds not even its beginning, it does from now on, and
    nothing else."""
    try:
        begun = read_json(folder / PLAN)
        if begun["identity"] == plan.identity:
            return bool(begun["finished"])
    except (OpenbookError, KeyError, TypeError):
        pass
    clear(folder)
    _write(folder, plan, finished=False)
    return False


def finish(folder: Path, plan: Plan) -> None:
    """All of the plan is there: from now on what only the work needed may go, in any order."""
    _write(folder, plan, finished=True)


def _write(folder: Path, plan: Plan, finished: bool) -> None:
    tree = {"identity": plan.identity, "finished": finished, "files": plan.files, "parts": len(plan.parts)}
    write_json(folder / PLAN, tree)


def clear(folder: Path) -> None:
    """Remove everything in a folder of work; first what says whose it is, for this may be stopped half way."""
    (folder / PLAN).unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
