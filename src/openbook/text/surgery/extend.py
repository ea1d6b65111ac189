"""Adding tokens to a vocabulary. They are found in a text before anything else is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from openbook.errors import TokenizerError
from openbook.text.sealed import checked_text
from openbook.text.surgery.change import Change
from openbook.text.tokenizer import Tokenizer


def extend(
    tokenizer: Tokenizer, tokens: Sequence[str], *, special: bool = False, start: Literal["mean", "pieces"] = "pieces"
) -> Change:
    """The same tokenizer with `tokens` behind its vocabulary.

    start     mean: a new row is the mean of all rows, so that the model says the new token about as rarely as any
              (Hewitt 2021); pieces: the mean of what the text was before, so that the model begins with its meaning
    special   text never becomes the token unless it is allowed to (see sealed.py)

    TokenizerError: a token that is there already, twice, or empty.
    """
    if not tokens:
        raise TokenizerError("There are no tokens to add. Give at least one.")
    for place, token in enumerate(tokens):
        checked_text(token)
        if not token.strip():
            raise TokenizerError(f"A token must be more than space: got {token!r}.")
        if tokenizer.token_id(token) is not None or token in tokens[:place]:
            raise TokenizerError(f"{token!r} is a token already: leave it out.")
    state = tokenizer.state()
    added = state["added_tokens"]
    for number, token in enumerate(tokens, tokenizer.vocab):
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added.append({"id": number, "content": token, **plain, "special": special})
    made = tokenizer.with_state(state, {number: number for number in range(tokenizer.vocab)})
    numbers = [made.token_id(token) for token in tokens]
    if numbers != list(range(tokenizer.vocab, tokenizer.vocab + len(tokens))):
        raise TokenizerError(
            f"The ids of this vocabulary have holes: new tokens would get the ids {numbers[:4]} …, which are not "
            f"behind its {tokenizer.vocab}. Trim it first, which closes them."
        )
    rows = [(number,) for number in range(tokenizer.vocab)]
    behind = [tuple(tokenizer.encode(token)) if start == "pieces" else () for token in tokens]
    return Change(made, (*rows, *behind), tokenizer.vocab)
