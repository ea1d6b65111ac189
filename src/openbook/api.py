"""The public face, loaded when first used: `import openbook as ob`, then `ob.load`, `ob.generate`, `ob.save`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from openbook.chat.engine import Engine
from openbook.chat.prompts import Prompts
from openbook.errors import InputError
from openbook.generate.grammars import Choice, Json, Lark, Regex, Schema
from openbook.generate.sampling import Sampling
from openbook.generate.settings import Settings
from openbook.models.load import load as load_model
from openbook.models.load import save as save_model
from openbook.nn.model import LanguageModel
from openbook.quant.form import check_quantize, quantised
from openbook.text.tokenizer import Tokenizer

__all__ = [
    "Choice",
    "Engine",
    "Json",
    "LanguageModel",
    "Lark",
    "Regex",
    "Sampling",
    "Schema",
    "Settings",
    "Tokenizer",
    "generate",
    "load",
    "save",
]


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
) -> LanguageModel:
    """A model from any folder of a supported family, in evaluation mode: see `openbook.models.load.load`.

    `quantize`: 'int8' keeps matrices as whole numbers, each the way that was measured to be close (quant/int8.py);
    the model then only runs, it does not learn. Errors: ConfigError for a value that is not known.
    """
    check_quantize(quantize)
    return quantised(load_model(name, dtype=dtype, device=device), quantize)


def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], sampling: Sampling | None = None
) -> list[str]:
    """Continue every prompt; returns the continuations (without the prompts), `sampling.n` of each, in order.

    The prompts run together; each gets what it would get alone. Errors: InputError for a prompt longer than the context
    or a setting out of range, TokenizerError where tokenizer and model do not fit.
    """
    if isinstance(prompts, str):
        raise InputError("`prompts` is a list of texts: give [prompt] for a single one.")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise InputError(
            f"`sampling` is a Sampling, such as ob.Sampling(max_tokens=64): got {type(sampling).__name__}."
        )
    work = Prompts(model, tokenizer, list(prompts), Sampling() if sampling is None else sampling)
    return [text for _, _, text in work.finished()]


class _Room(ModuleType):
    """The package `openbook.generate`, which is also called like the function of its name."""

    def __call__(
        self, model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], sampling: Sampling | None = None
    ) -> list[str]:
        """See `openbook.api.generate`."""
        return generate(model, tokenizer, prompts, sampling)


room = sys.modules["openbook.generate"]
room.__class__ = _Room


def save(model: LanguageModel, tokenizer: Tokenizer | None, folder: str | Path) -> None:
    """Write a Hugging Face folder: config.json, safetensors, and the tokenizer's files if one is given."""
    if tokenizer is not None:
        tokenizer.check_fits(model.spec.embed.vocab)
        tokenizer.save(folder)
    save_model(model, folder)
