"""Errors a user can act on: what was given, where, what is allowed, what to do.

Asserts elsewhere are for our own invariants; everything that input can cause is one of these. The command line prints
the message alone (no traceback) and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OpenbookWarning(UserWarning):
    """Something was understood but is probably not what was meant."""


class OpenbookError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class UsageError(OpenbookError):
    """The call itself is wrong: an unknown flag, a value out of range."""

    exit_code = 2


class ConfigError(OpenbookError):
    """A recipe, a `config.json` or a spec says something impossible or unknown."""


class CheckpointError(OpenbookError):
    """A folder of weights, or a training checkpoint, is damaged, incomplete or does not fit."""


class DataError(OpenbookError):
    """Text or shards cannot be used."""


class TokenizerError(OpenbookError):
    """A tokenizer is missing, damaged, or does not fit the model."""


class InputError(OpenbookError):
    """A prompt or a request cannot be served: too long, empty, a parameter out of range."""


class GrammarError(InputError):
    """No output can be held to a grammar, schema, pattern or choice: it is wrong, too large, or fits nothing."""


class TooLong(InputError):
    """A prompt does not fit the context."""


class Busy(OpenbookError):
    """Nothing more is taken now. `retry_after`: seconds until there should be room."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overdue(OpenbookError):
    """The time that a request was given is over."""


class Stopped(OpenbookError):
    """What was asked has stopped working, for this request and for all: an engine that is closed or broken."""


class RemoteError(OpenbookError):
    """An endpoint at the other end of a wire could not be reached, broke off, or says that it failed."""


class Refusal(OpenbookError):
    """A capability that this endpoint or model does not have was asked of it."""


class Diverged(OpenbookError):
    """Training met NaN or a loss that ran away."""


class MissingExtra(OpenbookError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs `{package}`. Install it with: pip install 'openbook[{extra}]'")


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """A hint that names the options nearest to `name`: ` Did you mean 'a' or 'b'?`, or the whole list when short."""
    known = sorted(set(options))
    if close := alike(name, known, count):
        return close
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f" Known: {shown}." if known else ""


def alike(name: str, options: Iterable[str], count: int = 3) -> str:
    """The first half of it: nothing where no option is near."""
    close = get_close_matches(name, sorted(set(options)), n=count, cutoff=0.5)
    return " Did you mean " + " or ".join(repr(c) for c in close) + "?" if close else ""
