"""The backend of a tokenizer, the `tokenizers` library: what is told to it, what is asked of it, what it throws."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import tokenizers
from tokenizers import models

from openbook.errors import TokenizerError
from openbook.text.folder import Added, Settings

T = TypeVar("T")
HALF_WRITTEN = "It may be half written by an interrupted copy: fetch it again."


def declare(backend: tokenizers.Tokenizer, settings: Settings, where: str) -> None:
    """Tell the backend of the tokens that the configuration names; flags come from the most specific place."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    listed = {token.content: token for token in settings.added.values()}
    for number, token in sorted(settings.added.items()):
        given = _added_token(token)
        if token.content not in known or repr(known[token.content]) != repr(given):
            (backend.add_special_tokens if token.special else backend.add_tokens)([given])
        if (got := backend.token_to_id(token.content)) != number:
            raise TokenizerError(
                f"`added_tokens_decoder` gives {token.content!r} the id {number}, tokenizer.json gives it {got}"
                f"{place(where)}. The two files belong to different models: fetch both again."
            )
    for token in [*settings.roles.values(), *settings.extra]:
        named = listed.get(token.content)
        given = _added_token(named) if named else known.get(token.content, _added_token(token))
        given.special = True
        backend.add_special_tokens([given])


def _added_token(token: Added) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        special=token.special,
        normalized=token.normalized,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
    )


def model_unk(backend: tokenizers.Tokenizer) -> int | None:
    """The id of the vocabulary's own unknown token."""
    if isinstance(backend.model, models.Unigram):
        number: int | None = json.loads(backend.to_str())["model"].get("unk_id")
        return number
    spelling = backend.model.unk_token
    return None if spelling is None else backend.token_to_id(spelling)


def guarded(call: Callable[[], T], what: str, advice: str = HALF_WRITTEN) -> T:
    """Call into the Rust library and turn whatever it throws, panics included, into a TokenizerError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust arrives as a BaseException of its own
        raise TokenizerError(f"{what} ({str(error)[:200]}). {advice}") from error


def encoded(call: Callable[[], T]) -> T:
    """`guarded`, for a text that is encoded: the library cannot follow every normaliser around every added token."""
    return guarded(
        call,
        "The `tokenizers` library fails on this text with this tokenizer.json",
        "Leave that text out, or mend the normaliser, the added tokens or the unknown token there.",
    )


def around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that are put before and after a text."""
    for probe in ("a", "A", "1", ".", "的"):
        encoding = backend.encode(probe)
        if 0 in encoding.special_tokens_mask:
            inner = encoding.special_tokens_mask
            first, last = inner.index(0), len(inner) - inner[::-1].index(0)
            return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])
    return (), ()


def check_fits(tokenizer_vocab: int, model_vocab: int) -> None:
    """Raise TokenizerError when a tokenizer has ids for which a model has no row in its embedding."""
    if tokenizer_vocab > model_vocab:
        raise TokenizerError(
            f"The tokenizer does not fit the model: it has ids up to {tokenizer_vocab - 1}, the model has "
            f"{model_vocab} rows. Use the tokenizer that this model was trained with, or a model with a `vocab` of "
            f"{tokenizer_vocab} or more."
        )


def place(where: str) -> str:
    """` ('FILE')` for an error text, where a file is known."""
    return f" ('{where}')" if where else ""
