"""`openbook embed DIR`: the vectors of texts, one JSON array to a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from openbook.cli.loading import Machine, as_usage, load_both
from openbook.errors import UsageError
from openbook.options import Positional, Repeated, parse

if TYPE_CHECKING:
    from openbook.generate.encode import Pooling


@dataclass(frozen=True, kw_only=True)
class Config(Machine):
    """Turn texts into vectors: as a sentence encoder's folder says, else by the mean of the hidden states.

    Without --text, every line of standard input is a text.
    """

    dir: Positional[str]
    """Model folder, or a name in the local Hugging Face cache."""
    text: Repeated[tuple[str, ...]] = ()
    """A text; may be given several times."""
    by: Literal["mean", "cls", "last", "max", "weighted", "root"] | None = None
    """How the hidden states become one vector, whatever the folder says."""
    dimensions: int | None = None
    """With --by: only the first so many numbers, for models that were trained so."""
    raw: bool = False
    """With --by: not brought to length 1."""
    json: bool = False
    """Print one JSON object with texts and vectors."""

    def pooling(self) -> Pooling | None:
        """What --by, --dimensions and --raw ask for; None: what the model says."""
        from openbook.generate.encode import Pooling

        if self.by is None and (self.dimensions is not None or self.raw):
            raise UsageError("--dimensions and --raw are of --by: say how the vector is made, such as --by mean.")
        with as_usage():
            return None if self.by is None else Pooling(by=self.by, dimensions=self.dimensions, normalise=not self.raw)


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    pooling = config.pooling()
    from openbook.generate.encode import embed

    texts = list(config.text) or [line.rstrip("\r\n") for line in sys.stdin]
    if not texts:
        raise UsageError("There is no text: give --text TEXT, or lines on standard input.")
    model, tokenizer = load_both(config.dir, config)
    with as_usage():
        vectors = embed(model, [tokenizer.prompt(text) for text in texts], pooling).tolist()
    if config.json:
        print(json.dumps({"texts": texts, "vectors": vectors}, ensure_ascii=False))
    else:
        print("\n".join(map(json.dumps, vectors)))
    return 0
