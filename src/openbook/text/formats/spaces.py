"""SentencePiece's normalisation as steps of the backend: the table of characters, then spaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openbook.text.formats.charsmap import steps as characters
from openbook.text.formats.found import State, sequence, substitute
from openbook.text.formats.pieces import SPACE, Spaces


def normalizer(charsmap: bytes, spaces: Spaces, where: Path, whole: Sequence[str] = ()) -> State | None:
    """The steps, in SentencePiece's order; `whole` are the user-defined pieces."""
    mark = SPACE if spaces.escape else " "
    first: State = {"type": "Prepend", "prepend": mark}
    before = spaces.dummy and not spaces.suffix
    steps = [first] if before and not spaces.collapse else []  # a text of characters that vanish has it too
    steps += characters(charsmap, where, whole) if charsmap else []
    if spaces.collapse:
        steps += [substitute(r"\A +", ""), substitute(" {2,}", " "), substitute(f"[ {mark}]+\\z", "")]
        steps += [first] if before else []
    if spaces.dummy and spaces.suffix:  # SentencePiece gives a text that vanishes here the suffix alone, this nothing
        steps.append(substitute(r"(?<=[\s\S])\z", mark))
    if spaces.escape:
        steps.append(substitute(" ", SPACE, literal=True))
    return sequence("normalizers", steps)
