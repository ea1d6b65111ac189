"""The public face, loaded when first used: `import openbook as ob`, then `ob.load`, `ob.generate`, `ob.save`."""

from __future__ import annotations

from pathlib import Path

from openbook.models.load import load
from openbook.models.load import save as save_model
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer

__all__ = ["LanguageModel", "Tokenizer", "load", "save"]


def save(model: LanguageModel, tokenizer: Tokenizer | None, folder: str | Path) -> None:
    """Write a Hugging Face folder: config.json, safetensors, and the tokenizer's files if one is given."""
    if tokenizer is not None:
        tokenizer.save(folder)
    save_model(model, folder)
