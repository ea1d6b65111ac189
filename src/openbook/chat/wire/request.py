"""From the values of the waist to the fields of a request.

What the API's names can say is said by them; what it cannot, by the names that vLLM gave to its extensions and that
other servers took over (`top_k`, `min_p`, `structured_outputs` …), and only where it is asked for, so that an endpoint
without extensions is never sent one. What has no name at all is a Refusal: nothing is left out in silence.

max_tokens   rather than `max_completion_tokens`, which older servers ignore
temperature  and `top_p` are always sent: an endpoint may have other defaults than ours
tenant       is sent as `user`, hashed; the endpoint may share prefixes between the users of one key
priority     as it is: our server takes the higher first (vLLM, where it is told to look at it, the lower)
timeout      has no name: it is kept by `connection.py`, which hangs up
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from openbook.chat.messages import Message, Terms, Tool, ToolUse
from openbook.errors import InputError, Refusal
from openbook.generate.grammars import Calls, Choice, Grammar, Json, Lark, Reasoned, Regex, Schema
from openbook.generate.sampling import Sampling

Fields = dict[str, Any]
FORBIDDEN = -100  # a bias that means: never
# field of Sampling → its name on the wire, where it is not the default
NAMES = {
    "n": "n",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
}
UNSPEAKABLE = ("no_repeat_ngram", "forced", "beams", "length_penalty", "early_stopping")
_PLAIN = Sampling()


def chat_fields(
    messages: Sequence[Message],
    sampling: Sampling,
    tools: Sequence[Tool],
    use: ToolUse,
    terms: Terms,
    variables: Mapping[str, Any],
) -> Fields:
    """The body of `/v1/chat/completions`, without the model."""
    if sampling.prompt_logprobs is not None:
        raise Refusal("`prompt_logprobs` has no name in the chat of an endpoint. Ask `complete` or `score`.")
    fields: Fields = {"messages": [message.as_dict() for message in messages], **_common(sampling, terms)}
    if sampling.logprobs is not None:
        fields |= {"logprobs": True} | ({"top_logprobs": sampling.logprobs} if sampling.logprobs else {})
    if tools:
        fields |= {"tools": [tool.as_dict() for tool in tools], "tool_choice": _tool_choice(use)}
        fields |= {} if use.parallel else {"parallel_tool_calls": False}
    elif use.mode == "required":
        raise InputError("A tool must be called, and there are no `tools`.")
    if variables:
        fields["chat_template_kwargs"] = dict(variables)
    return fields


def complete_fields(prompt: str | Sequence[int], sampling: Sampling, terms: Terms) -> Fields:
    """The body of `/v1/completions`, without the model and without `prompt_logprobs`."""
    fields: Fields = {"prompt": prompt if isinstance(prompt, str) else list(prompt), **_common(sampling, terms)}
    if sampling.logprobs is not None:
        fields["logprobs"] = sampling.logprobs
    return fields


def as_json(fields: Fields) -> bytes:
    """The body as it is sent."""
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InputError("The request holds text that is not valid Unicode (a lone surrogate).") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The request cannot be written as JSON: {error}.") from error


def _common(sampling: Sampling, terms: Terms) -> Fields:
    asked, plain = vars(sampling), vars(_PLAIN)
    for name in UNSPEAKABLE:
        if asked[name] != plain[name]:
            raise Refusal(f"`{name}` has no name in the API of endpoints: leave it out, or use a model of your own.")
    fields: Fields = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name, wire in NAMES.items():
        if asked[name] != plain[name]:
            fields[wire] = asked[name]
    if sampling.stop:
        fields["stop"] = [_stop(stop) for stop in sampling.stop]
    if sampling.stop_ids:
        fields["stop_token_ids"] = list(sampling.stop_ids)
    if sampling.logit_bias or sampling.banned:
        bias = {i: FORBIDDEN if number == -math.inf else number for i, number in sampling.logit_bias.items()}
        bias |= dict.fromkeys(sampling.banned, FORBIDDEN)
        fields["logit_bias"] = {str(i): number for i, number in bias.items()}
    fields |= _format(sampling.grammar)
    if terms.priority:
        fields["priority"] = terms.priority
    if terms.tenant:
        fields["user"] = hashlib.sha256(terms.tenant.encode(errors="replace")).hexdigest()[:32]
    return fields


def _stop(stop: str | bytes) -> str:
    try:
        return stop if isinstance(stop, str) else stop.decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            f"`stop` holds bytes that are no text, and an endpoint takes texts only: {stop!r:.60}."
        ) from error


def _format(grammar: Grammar | None) -> Fields:
    match grammar:
        case None:
            return {}
        case Json():
            return {"response_format": {"type": "json_object"}}
        case Schema(text):
            form = {"name": "answer", "schema": json.loads(text), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": form}}
        case Regex(text):
            return {"structured_outputs": {"regex": text}}
        case Choice(options):
            return {"structured_outputs": {"choice": list(options)}}
        case Lark(text):
            return {"structured_outputs": {"grammar": text}}
        case Calls() | Reasoned():
            raise Refusal("An endpoint holds calls to their schemas by itself: give it `tools`, not a grammar.")


def _tool_choice(use: ToolUse) -> str | Fields:
    return use.mode if use.name is None else {"type": "function", "function": {"name": use.name}}
