"""SentencePiece's normalisation as steps of the backend: the table of characters, then spaces."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

from openbook.text.formats.found import State, sequence, substitute
from openbook.text.formats.pieces import SPACE, Spaces


def normalizer(charsmap: bytes, spaces: Spaces, where: Path) -> State | None:
    """The steps, in SentencePiece's order."""
    steps: list[State] = []
    if charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap).decode("ascii")})
    mark = SPACE if spaces.escape else " "
    if spaces.collapse:
        steps += [substitute(r"\A +", ""), substitute(" {2,}", " "), substitute(f"[ {mark}]+\\z", "")]
    if spaces.dummy and not spaces.suffix:
        steps.append({"type": "Prepend", "prepend": mark})
    if spaces.dummy and spaces.suffix:
        steps.append(substitute(r"(?<=.)\z", mark))
    if spaces.escape:
        steps.append(substitute(" ", SPACE, literal=True))
    return sequence("normalizers", steps)
