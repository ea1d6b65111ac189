"""Structured output: at every step, the ids with which an output still can become a text of its grammar.

    vocabulary = Vocabulary([b"a", b"b", ...], eos=[2])       once for a tokenizer
    constraint = Constraint.compile(vocabulary, Schema(text))  once for a request: about a millisecond
    constraint.allowed()                                       bool [V]: tens of microseconds
    constraint.accept(token)                                   and so on; `rollback` and `copy` for drafts and beams

The work is done by `llguidance` (an Earley parser over derivatives of regular expressions; the optional dependency is
met here alone). Every split of a text into tokens is allowed, not only the one its tokenizer would choose, so that the
model's own distribution is cut and not reshaped. An id that ends the output is allowed exactly when the text is whole.
Ids without bytes (special ids, padding rows of an embedding) are never allowed, but where a mark of calls or reasoning
(`grammars.Mark`) names one by its number.

Symbols: V vocabulary, b rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openbook.errors import InputError, MissingExtra, OpenbookError
from openbook.generate.composed import FREE, OBJECT, composed, literal
from openbook.generate.grammars import Calls, Choice, Grammar, Json, Lark, Reasoned, Regex, Schema

if TYPE_CHECKING:
    import llguidance

ITEMS = 10_000  # alternatives that are followed at once
GAP = 64  # most whitespace between two parts of a JSON document
JSON_RULES = {"json_allowed_escapes": '"\\bfnrt', "whitespace_pattern": rf"[ \n\r\t]{{0,{GAP}}}", "lenient": False}
LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*|//[^\n]*|#[^\n]*')  # of Lark: what is no syntax


def available() -> bool:
    """Whether the library that enforces grammars is installed."""
    return find_spec("llguidance") is not None


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra(
            "llguidance", "structured", "Structured output (a schema, regex, choice or grammar)"
        ) from error
    return llguidance


class _Tokens:
    """A vocabulary in the form that `llguidance` reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], specials: list[int], eos: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, specials, eos

    def __call__(self, _text: str | bytes) -> list[int]:
        raise AssertionError("asked only where one split of a text is forced")


class Vocabulary:
    """The bytes of a tokenizer's ids, `token_bytes[id]`; b"" for an id that is no text.

    eos: ids that end an output. specials: more ids that are no text, whatever their bytes.
    """

    def __init__(self, token_bytes: Sequence[bytes], eos: Collection[int], specials: Collection[int] = ()) -> None:
        size = len(token_bytes)
        wrong = sorted(i for i in {*eos, *specials} if not 0 <= i < size)
        if wrong:
            raise InputError(f"`eos` and `specials` must be ids of the vocabulary (0 to {size - 1}): got {wrong[0]}.")
        if not eos:
            raise InputError("Structured output needs an id that ends the output: give `eos`.")
        self.size = size
        self.eos = frozenset(eos)
        mute = {*specials, *self.eos, *(i for i, text in enumerate(token_bytes) if not text)}
        # A special id has a name that no text can spell: the library puts a byte in front of it that is no UTF-8.
        tokens = [f"<|{i}|>".encode() if i in mute else bytes(text) for i, text in enumerate(token_bytes)]
        ends = sorted(self.eos)
        self.tokenizer: llguidance.LLTokenizer = _library().LLTokenizer(
            _Tokens(tokens, sorted(mute), ends[0]), eos_token=ends
        )


class Constraint:
    """Where an output stands in its grammar."""

    def __init__(self, vocabulary: Vocabulary, matcher: llguidance.LLMatcher, ends: frozenset[int]) -> None:
        self.vocabulary = vocabulary
        self.ends = ends
        self.over = 0  # ids taken since the output ended, the one that ended it included
        self.fault: str | None = None  # why nothing is allowed any more, where the library gave up
        self._matcher = matcher

    @staticmethod
    def compile(vocabulary: Vocabulary, grammar: Grammar, ends: Collection[int] = ()) -> Constraint:
        """The start of a grammar. `ends`: more ids that end the output (a request's stop ids).

        Raises `InputError` for a grammar that cannot be enforced, with what and where.
        """
        matcher = _library().LLMatcher(vocabulary.tokenizer, _source(grammar), log_level=0, limits=_limits())
        constraint = Constraint(vocabulary, matcher, vocabulary.eos | frozenset(ends))
        if matcher.is_error():
            raise InputError(f"The {_name(grammar)} cannot be honoured: {_reason(matcher)}")
        if not constraint.allowed().any():
            reason = constraint.fault or "no text of this vocabulary fits it."
            raise InputError(f"The {_name(grammar)} cannot be honoured: {reason}")
        return constraint

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow, or it has come."""
        return bool(self.over or self._matcher.is_stopped())

    @property
    def whole(self) -> bool:
        """Whether the output may end here."""
        return bool(self.over or (not self.fault and self._matcher.is_accepting()))

    def allowed(self, vocab: int | None = None) -> NDArray[np.bool_]:
        """Which ids may come next, bool [V]; `vocab`: V where the model has more or fewer ids than the tokenizer."""
        return masks([self], self.vocabulary.size if vocab is None else vocab)[0]

    def fill(self, row: NDArray[np.uint32]) -> None:
        """Writes the bits of the ids that the grammar allows, its ends apart, into a row of words that is all 0.

        A grammar that became too costly allows nothing (`fault` says why): its batch mates go on.
        """
        if self.over or self.fault:
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            self.fault = f"the grammar became too costly, simplify it: {_reason(self._matcher)}"
            if "NoExtension" in self.fault:
                self.fault = "no text of this vocabulary fits it."
            row.fill(0)

    def accept(self, token: int) -> None:
        """Takes the chosen id, which must be allowed."""
        if self.over:
            assert token in self.ends, "nothing but an end follows the end"
            self.over += 1
        elif token in self.ends:
            assert self.whole, "an end comes where the text is whole"
            self.over = 1
        elif not self._matcher.consume_token(token):
            self.fault = _reason(self._matcher)
            raise InputError(f"Id {token} does not fit the grammar, or made it too costly: {self.fault}")

    def rollback(self, count: int) -> None:
        """Takes back the last `count` ids."""
        back = min(count, self.over)
        self.over -= back
        if count > back and not self._matcher.rollback(count - back):
            raise OpenbookError(f"The grammar cannot go back {count} ids: {_reason(self._matcher)}")

    def prefix_ok(self, tokens: Sequence[int]) -> int:
        """How many of these ids could follow one after the other. Nothing is taken."""
        if self.over:
            return next((i for i, token in enumerate(tokens) if token not in self.ends), len(tokens))
        stop = next((i for i, token in enumerate(tokens) if token in self.ends or token >= self.vocabulary.size), None)
        fit = int(self._matcher.validate_tokens(list(tokens[:stop])))
        if stop is None or fit < stop:
            return fit
        other = self.copy()
        for token in tokens[:stop]:
            other.accept(token)
        if tokens[stop] not in self.ends or not other.whole:
            return fit
        other.accept(tokens[stop])
        return fit + 1 + other.prefix_ok(tokens[stop + 1 :])

    def copy(self) -> Constraint:
        """An independent continuation of the same output."""
        other = Constraint(self.vocabulary, self._matcher.deep_copy(), self.ends)
        other.over, other.fault = self.over, self.fault
        return other


@lru_cache(256)
def fault(grammar: Grammar) -> str | None:
    """Why a grammar cannot be enforced over any vocabulary; None: it can."""
    try:
        Constraint.compile(_every_byte(), grammar)
    except InputError as error:
        return str(error)
    return None


@lru_cache(1)
def _every_byte() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], eos=[256])


def masks(constraints: Sequence[Constraint], vocab: int) -> NDArray[np.bool_]:
    """Which ids may come next for each of some constraints of one vocabulary: bool [b,V]."""
    size = constraints[0].vocabulary.size
    words = np.zeros((len(constraints), (size + 31) // 32), dtype=np.uint32)
    for row, constraint in zip(words, constraints, strict=True):
        constraint.fill(row)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=size, bitorder="little").view(np.bool_)
    found = np.zeros((len(constraints), vocab), dtype=np.bool_) if vocab > size else bits[:, :vocab]
    if vocab > size:
        found[:, :size] = bits
    for row, constraint in zip(found, constraints, strict=True):
        row[[i for i in constraint.ends if i < vocab]] = constraint.whole
    return found


def _limits() -> Any:
    return _library().LLParserLimits(verbose_errors=False, max_items_in_row=ITEMS)


def _name(grammar: Grammar) -> str:
    names = {Schema: "schema", Regex: "regex", Choice: "choice", Lark: "Lark grammar", Json: "JSON grammar"}
    return names.get(type(grammar), "grammar of calls")


def _reason(matcher: llguidance.LLMatcher) -> str:
    """The library's message on one line, without the place of a schema in the grammar that we wrapped around it."""
    if matcher.get_error().find("oneOf constraints") >= 0:
        return "`oneOf` is honoured where no document can fit two of its branches. Use `anyOf`."
    text = " ".join(re.split(r"\n *\d+ \| ", matcher.get_error(), maxsplit=1)[0].split())
    return re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", text)[:500].rstrip(".") + "."


def _source(grammar: Grammar) -> str:
    """The grammar in Lark's syntax, as `llguidance` reads it."""
    match grammar:
        case Schema(text):
            return _json(text) + FREE
        case Json():
            return _json(OBJECT) + FREE
        case Regex(text):
            made = json.loads(_library().LLMatcher.grammar_from_regex(text.replace("\n", "\\n")))
            return str(made["grammars"][0]["lark_grammar"]) + FREE
        case Choice(options):
            return "start: /(" + "|".join(literal(option) for option in dict.fromkeys(options)) + ")/" + FREE
        case Lark(text):
            _check_lark(text)
            return text + FREE
        case Calls() | Reasoned():
            parts = composed(grammar, _source)
            return json.dumps({"grammars": [{"name": name, "lark_grammar": text} for name, text in parts.items()]})


def _json(schema: str) -> str:
    rest = schema.strip()
    if rest == "false":
        raise InputError("The schema cannot be honoured: `false` fits no document.")
    rest = "}" if rest == "true" else rest[1:].lstrip()
    return f'start: %json {{"x-guidance": {json.dumps(JSON_RULES)}' + ("" if rest == "}" else ", ") + rest


def _check_lark(text: str) -> None:
    """Refuses what would be taken without being honoured."""
    bare = LITERAL.sub(" ", text)
    if "%llguidance" in bare:
        raise InputError("`%llguidance` inside a Lark grammar is not supported: leave the line out.")
    if "%json" in bare:
        raise InputError("`%json` inside a Lark grammar is not supported, since it ignores keywords. Use a schema.")
    if found := re.search(r"\[[^\]]*\btemperature\b", bare):
        line = text[: found.start()].count("\n") + 1
        raise InputError(
            f"`temperature` inside a Lark grammar (line {line}) is not supported: it is a field of Sampling."
        )
