"""From a request's fields to the values of the waist: sampling, terms, messages, tools."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec

from openbook.chat import Message, Sampling, Terms, Tool, ToolUse
from openbook.errors import GrammarError, InputError
from openbook.generate.grammars import Choice, Grammar, Json, Lark, Regex, Schema
from openbook.serve.settings import Settings
from openbook.serve.wire.basics import Choosing, Format, FormatObject, FormatSchema, Structured
from openbook.serve.wire.chat import ChatRequest, MessageIn, ToolNamed
from openbook.serve.wire.completions import CompletionRequest
from openbook.serve.wire.responses import ResponseRequest

COMPLETION_TOKENS = 16  # of a completion that does not say, as the API has it
FORBIDDEN = -100.0  # a bias that means: never


def sampling_of(asked: Choosing, defaults: Sampling, room: int | None) -> Sampling:
    """How tokens are to be chosen. `room`: most tokens of an answer that does not say."""
    same = {
        name: value
        for name in (
            "min_tokens", "n", "temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "seed", "ignore_eos", "prompt_logprobs",
        )
        if (value := getattr(asked, name)) is not None
    }  # fmt: skip
    most = asked.max_tokens
    if isinstance(asked, ChatRequest):
        if most is not None and asked.max_completion_tokens is not None:
            raise InputError("`max_tokens` and `max_completion_tokens` are the same: give one of the two.")
        most = asked.max_completion_tokens if most is None else most
        if asked.top_logprobs is not None and not asked.logprobs:
            raise InputError("`top_logprobs` needs `logprobs`: true.")
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    else:
        logprobs = asked.logprobs if isinstance(asked, CompletionRequest) else None
    if asked.top_k is not None:
        same["top_k"] = max(asked.top_k, 0)
    if most is None:
        most = defaults.max_tokens if room is None else room
    return replace(
        defaults,
        max_tokens=most,
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()),
        stop_ids=tuple(asked.stop_token_ids or ()),
        logit_bias=_bias(asked.logit_bias),
        logprobs=logprobs,
        grammar=grammar_of(asked.response_format, asked.structured_outputs),
        **same,
    )


def _bias(bias: dict[str, float] | None) -> dict[int, float]:
    found: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise InputError(f"`logit_bias` maps ids of tokens, as text, to numbers: got the key {key!r:.60}.")
        found[int(key)] = -math.inf if value <= FORBIDDEN else value
    return found


def grammar_of(form: Format | None, structured: Structured | None) -> Grammar | None:
    """What the answer must be."""
    try:
        return _grammar_of(form, structured)
    except InputError as error:
        raise GrammarError(str(error)) from error


def _grammar_of(form: Format | None, structured: Structured | None) -> Grammar | None:
    if structured is None:
        if isinstance(form, FormatSchema):
            return Schema.of(form.json_schema.schema)
        return Json() if isinstance(form, FormatObject) else None
    given = {name: value for name, value in msgspec.structs.asdict(structured).items() if value is not None}
    if form is not None or len(given) != 1:
        raise InputError(
            "`structured_outputs` says one thing (json, regex, choice or grammar), and not beside `response_format`: "
            f"got {', '.join(given) or 'nothing'}{' and response_format' if form else ''}."
        )
    (name, value) = next(iter(given.items()))
    made: dict[str, Any] = {
        "json": Schema.of,
        "regex": Regex,
        "choice": lambda them: Choice(tuple(them)),
        "grammar": Lark,
    }
    found: Grammar = made[name](value)
    return found


def check_stream(asked: Choosing | ResponseRequest) -> None:
    """What says how a stream is to be is refused where there is none."""
    for name, value in (("stream_options", asked.stream_options), ("buffer", asked.buffer)):
        if value is not None and not asked.stream:
            raise InputError(f"`{name}` is about a stream: ask for one (`stream`: true), or leave it out.")


def terms_of(asked: Choosing, tenant: str, settings: Settings) -> Terms:
    """How the request stands among the others."""
    limits = [seconds for seconds in (asked.timeout, settings.timeout) if seconds is not None]
    return Terms(tenant=tenant, priority=asked.priority or 0, timeout=min(limits, default=None))


def message_of(given: MessageIn) -> Message:
    """A message as the waist has it."""
    value = {name: part for name, part in msgspec.to_builtins(given).items() if part not in (None, [])}
    return Message.of(value)


def tools_of(asked: ChatRequest) -> tuple[tuple[Tool, ...], ToolUse]:
    """The tools, and how they may be used."""
    tools = tuple(
        Tool(
            name=one.function.name,
            description=one.function.description or "",
            parameters={"type": "object", "properties": {}}
            if one.function.parameters is None
            else one.function.parameters,
            strict=bool(one.function.strict),
        )
        for one in asked.tools or ()
    )
    names = [tool.name for tool in tools]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"Two `tools` are called {double!r}: give each a name of its own.")
    choice, parallel = asked.tool_choice, asked.parallel_tool_calls is not False
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InputError("`tool_choice` asks for a call, and there are no `tools`.")
        return (), ToolUse(parallel=parallel)
    if isinstance(choice, ToolNamed):
        if choice.function.name not in names:
            raise InputError(f"`tool_choice` names {choice.function.name!r}, which is not among `tools`: {names}.")
        return tools, ToolUse(mode="required", name=choice.function.name, parallel=parallel)
    return tools, ToolUse(mode=choice or "auto", parallel=parallel)
