"""Items of a response → the messages of a chat: the one way of asking a model, whichever route it is asked by.

The assistant's reasoning, text and calls are items of their own there and one message here: what follows each other
without a turn of somebody else is joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from openbook.errors import InputError
from openbook.serve.wire.basics import Format, FormatSchema, JsonSchema
from openbook.serve.wire.chat import (
    AssistantIn,
    CalledIn,
    ChatRequest,
    DeveloperIn,
    Function,
    FunctionNamed,
    MessageIn,
    SystemIn,
    TextPart,
    ToolCallIn,
    ToolDefined,
    ToolIn,
    ToolNamed,
    UserIn,
)
from openbook.serve.wire.responses import (
    CallItem,
    FormatNamed,
    FunctionChosen,
    FunctionTool,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    RefusalText,
    ResponseRequest,
    ResultItem,
)


def chat_of(asked: ResponseRequest, items: Sequence[Item]) -> ChatRequest:
    """The same request, of a conversation of `items`, in the words of a chat."""
    logprobs = bool(asked.include)
    if asked.top_logprobs is not None and not logprobs:
        raise InputError('`top_logprobs` needs `include`: ["message.output_text.logprobs"].')
    before: list[MessageIn] = [] if asked.instructions is None else [SystemIn(content=asked.instructions)]
    choice = asked.tool_choice
    return ChatRequest(
        model=asked.model,
        messages=before + messages_of(items),
        max_completion_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        seed=asked.seed,
        stop=asked.stop,
        logprobs=logprobs,
        top_logprobs=asked.top_logprobs,
        response_format=_format(asked),
        tools=None if asked.tools is None else [_tool(one) for one in asked.tools],
        tool_choice=ToolNamed(function=FunctionNamed(name=choice.name))
        if isinstance(choice, FunctionChosen)
        else choice,
        parallel_tool_calls=asked.parallel_tool_calls,
        truncate="oldest" if asked.truncation == "auto" else None,
        chat_template_kwargs=asked.chat_template_kwargs,
        priority=asked.priority,
        timeout=asked.timeout,
    )


def _tool(tool: FunctionTool) -> ToolDefined:
    """A tool; here its schema is kept to unless that is not wanted, as the API has it."""
    return ToolDefined(
        function=Function(
            name=tool.name,
            description=tool.description,
            parameters=tool.parameters,
            strict=tool.strict is not False,
        )
    )


def _format(asked: ResponseRequest) -> Format | None:
    form = None if asked.text is None else asked.text.format
    if isinstance(form, FormatNamed):
        return FormatSchema(json_schema=JsonSchema(name=form.name, schema=form.schema, strict=form.strict))
    return form


def messages_of(items: Sequence[Item]) -> list[MessageIn]:
    """The messages of a conversation."""
    messages: list[MessageIn] = []
    turn: AssistantIn | None = None  # of the assistant, while nobody else speaks

    def assistant() -> AssistantIn:
        nonlocal turn
        if turn is None:
            turn = AssistantIn()
            messages.append(turn)
        return turn

    for item in items:
        match item:
            case ReasoningItem():
                texts = [part.text for part in item.content or item.summary or ()]
                if turn is not None:  # it thinks again: another message
                    turn = None
                if texts:
                    assistant().reasoning_content = "\n".join(texts)
            case CallItem():
                call = ToolCallIn(id=item.call_id, function=CalledIn(name=item.name, arguments=item.arguments))
                assistant().tool_calls = [*(assistant().tool_calls or ()), call]
            case MessageItem(role="assistant"):
                if turn is not None and (turn.content is not None or turn.tool_calls):
                    turn = None
                assistant().content = _content(item)
            case MessageItem():
                turn = None
                messages.append(_MESSAGES[item.role](content=_content(item)))
            case ResultItem():
                turn = None
                output = item.output
                content = output if isinstance(output, str) else [TextPart(text=part.text) for part in output]
                messages.append(ToolIn(content=content, tool_call_id=item.call_id))
    for message in messages:
        if isinstance(message, AssistantIn) and message.content is None and not message.tool_calls:
            message.content = ""  # it thought, and said nothing
    return messages


_MESSAGES: dict[str, type[UserIn] | type[SystemIn] | type[DeveloperIn]] = {
    "user": UserIn,
    "system": SystemIn,
    "developer": DeveloperIn,
}


def _content(item: MessageItem) -> str | list[TextPart]:
    if isinstance(item.content, str):
        return item.content
    return [TextPart(text=_text(part)) for part in item.content]


def _text(part: InputText | OutputText | RefusalText) -> str:
    return part.refusal if isinstance(part, RefusalText) else part.text
