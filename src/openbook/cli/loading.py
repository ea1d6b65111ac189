"""What verbs that use a model share: where to find it, and on what and with what to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openbook.nn.model import LanguageModel
    from openbook.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what and with what to compute."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    dtype: str = "auto"
    """float32, bfloat16, float16; auto: what the files hold."""
    threads: int | None = None
    """CPU threads. Default: the physical cores."""


def load_model(name: str, machine: Machine) -> LanguageModel:
    """The model of a folder, or of a name in the local Hugging Face cache, on its device."""
    from openbook import runtime
    from openbook.models.load import load

    runtime.use_threads(machine.threads)
    return load(name, dtype=machine.dtype, device=runtime.pick_device(machine.device))


def load_both(name: str, machine: Machine) -> tuple[LanguageModel, Tokenizer]:
    """A model and its tokenizer, which must fit each other."""
    from openbook.models.folder import resolve
    from openbook.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve(name))
    model = load_model(name, machine)
    tokenizer.check_fits(model.spec.embed.vocab)
    return model, tokenizer
