"""Every family that the laws hold: tiny configurations with odd shapes and values that are no defaults.

Each case builds the reference model of the `transformers` library with random weights. To register a new family, add
its cases to one of the files here (or add a file with a list `CASES`); laws 1, 3 and 4 then run on it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.families.case import Case, each, names, tokens
from tests.families.core import CASES as CORE
from tests.families.core import LLAMA, SMALL_BERT

_MORE = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem not in ("case", "core"))
ALL: list[Case] = [*CORE, *(case for file in _MORE for case in import_module(f"tests.families.{file}").CASES)]
DECODERS = [case for case in ALL if case.kind == "decoder"]
ENCODERS = [case for case in ALL if case.kind == "encoder"]
ENCODER_DECODERS = [case for case in ALL if case.kind == "encoder-decoder"]

__all__ = ["ALL", "DECODERS", "ENCODERS", "ENCODER_DECODERS", "LLAMA", "SMALL_BERT", "Case", "each", "names", "tokens"]
