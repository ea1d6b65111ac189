"""What the verbs that change a vocabulary share: a folder with a tokenizer, and its model where it has one; the result.

A folder without config.json is a tokenizer alone, and so is what is made of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openbook.errors import TokenizerError

if TYPE_CHECKING:
    from openbook.nn.model import LanguageModel
    from openbook.text.surgery import Change
    from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the result goes, and how it is told."""

    out: Path
    """Folder to write: the tokenizer, and the model where there is one."""
    multiple: int = 1
    """The model gets a multiple of so many rows, which some hardware is faster with; those without a token are zero."""
    overwrite: bool = False
    """Replace what is there."""
    json: bool = False
    """Print one JSON object."""


def spare(output: Output, *sources: str) -> None:
    """An error before any work: where a model or a tokenizer would be lost, and for a multiple below 1."""
    if output.multiple < 1:
        raise TokenizerError(f"--multiple must be 1 or more: got {output.multiple}.")
    if any(Path(source).expanduser().resolve() == output.out.expanduser().resolve() for source in sources):
        raise TokenizerError(f"'{output.out}' is what is read: choose another --out.")
    if output.out.exists() and not output.out.is_dir():
        raise TokenizerError(f"'{output.out}' is a file, and --out is a folder: choose another.")
    there = [name for name in ("config.json", "tokenizer.json") if (output.out / name).exists()]
    if there and not output.overwrite:
        raise TokenizerError(f"'{output.out}' holds a {there[0]}. Choose another --out, or give --overwrite.")


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder."""
    from openbook.text.tokenizer import Tokenizer

    return Tokenizer.load(name)


def load_model(name: str) -> LanguageModel | None:
    """The model of a folder, None where it is a tokenizer alone."""
    if not (Path(name).expanduser() / "config.json").exists():
        return None
    from openbook.models.load import load

    return load(name)


def write(
    output: Output, change: Change, body: LanguageModel | None, *, donor: LanguageModel | None = None, before: int
) -> None:
    """Write the result and say what became of the vocabulary of `before` ids."""
    facts: dict[str, object] = {
        "out": str(output.out), "ids_before": before, "ids": change.tokenizer.vocab,
        "copied": sum(len(sources) == 1 for sources in change.rows),
        "means_of_pieces": sum(len(sources) > 1 for sources in change.rows),
        "means_of_all": sum(not sources for sources in change.rows),
    }  # fmt: skip
    if body is not None:
        from openbook.models.load import save
        from openbook.models.vocabulary import with_vocabulary

        parameters = sum(parameter.numel() for parameter in body.parameters())
        ids = change.ids if donor is None else None  # a body that stays with its tokenizer keeps its special ids
        made = with_vocabulary(
            body, change.rows, known=change.known, ids=ids, donor=donor, multiple=output.multiple
        )  # fmt: skip
        change.tokenizer.check_fits(made.spec.embed.vocab)
        facts |= {
            "rows": made.spec.embed.vocab, "parameters_before": parameters,
            "parameters": sum(parameter.numel() for parameter in made.parameters()),
        }  # fmt: skip
        change.tokenizer.save(output.out)
        save(made, output.out)
    else:
        change.tokenizer.save(output.out)
    print(json.dumps(facts) if output.json else _said(facts))


def _said(facts: dict[str, object]) -> str:
    lines = [f"{facts['out']}: {facts['ids']:,} ids, {facts['ids_before']:,} before"]
    lines += [f"rows: {facts['copied']:,} copied, {facts['means_of_pieces']:,} the mean of their pieces, "
              f"{facts['means_of_all']:,} the mean of all"]  # fmt: skip
    if "parameters" in facts:
        lines += [
            f"model: {facts['rows']:,} rows, {facts['parameters']:,} parameters, {facts['parameters_before']:,} before"
        ]
    return "\n".join(lines)
