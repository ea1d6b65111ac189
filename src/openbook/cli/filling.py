"""What `openbook generate` does with a model that sees both ways: it fills the masks of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openbook.errors import InputError, UsageError

if TYPE_CHECKING:
    from openbook.nn.model import LanguageModel
    from openbook.text.tokenizer import Tokenizer

SHOWN = 5  # alternatives for each mask, with --json


def refuse_others(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """An error for an option that filling masks cannot honour."""
    for name, value in given.items():
        if name not in ("temperature", "seed") and value != defaults[name]:
            raise UsageError(f"--{name.replace('_', '-')} has no meaning for a model that fills masks.")


def filled(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], temperature: float, seed: int | None
) -> Iterator[dict[str, Any]]:
    """Each prompt with its masks filled, and what else could stand at each of them.

    Several masks are filled in a few passes, the most certain first, each in the light of the others.
    """
    from openbook.generate.masked import fill, unmask

    if tokenizer.mask is None:
        raise InputError(
            "This model fills masks, and its tokenizer has no mask token: there is nothing it could write."
        )
    mask = str(tokenizer.token(tokenizer.mask))
    texts = [tokenizer.prompt(prompt, allow_specials=[mask]) for prompt in prompts]
    for prompt, text in zip(prompts, texts, strict=True):
        if tokenizer.mask not in text:
            raise InputError(f"This model fills masks: write {mask} where a word is wanted. Got {prompt!r:.60}.")
    specials = list(tokenizer.specials.values())
    written = unmask(model, texts, tokenizer.mask, temperature=temperature, seed=seed, banned=specials)
    blanks = fill(model, texts, tokenizer.mask, top=SHOWN, banned=specials)
    for prompt, ids, around in zip(prompts, written, blanks, strict=True):
        yield {
            "prompt": prompt,
            "text": tokenizer.decode(ids),
            "ids": ids,
            "masks": [
                {"place": b.place, "top": [{"id": i, "text": tokenizer.decode([i]), "p": p} for i, p in b.top]}
                for b in around
            ],
        }
