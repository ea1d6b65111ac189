"""What verbs that use a model share: where to find it, and on what and with what to compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openbook.errors import CheckpointError, InputError, UsageError

if TYPE_CHECKING:
    from openbook.nn.model import LanguageModel
    from openbook.text.tokenizer import Tokenizer


FORMATS = ("int8",)  # of --quantize; quant/form.py has them


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what and with what to compute."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16; auto: what the files hold."""
    threads: int | None = None
    """CPU threads. Default: the physical cores."""


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """What options ask for and cannot be is wrong usage."""
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


def load_model(name: str, machine: Machine, quantize: str | None = None) -> LanguageModel:
    """The model of a folder, or of a name in the local Hugging Face cache, on its device."""
    from openbook import runtime
    from openbook.models.load import load

    runtime.use_threads(machine.threads)
    model = load(name, dtype=machine.dtype, device=runtime.pick_device(machine.device))
    if quantize is None:
        return model
    from openbook.quant.form import quantised

    return quantised(model, quantize)


def load_both(name: str, machine: Machine, quantize: str | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A model and its tokenizer, which must fit each other."""
    from openbook.models.folder import resolve
    from openbook.text.tokenizer import Tokenizer

    folder = resolve(name)
    if not (folder / "config.json").exists() and (folder / "recipe.toml").exists():
        raise CheckpointError(
            f"'{name}' is a training run that is not finished; its model is written at the end. "
            f"Go on with it: openbook pretrain {folder / 'recipe.toml'}"
        )
    tokenizer = Tokenizer.load(folder)
    model = load_model(name, machine, quantize)
    tokenizer.check_fits(model.spec.embed.vocab)
    return model, tokenizer
