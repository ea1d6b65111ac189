"""Chat templates in the ways that published ones write calls of tools and reasoning; their texts are our own."""

from __future__ import annotations

from collections.abc import Sequence

from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES

SPECIALS = (
    "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "[CALLS]", "[ARGS]", "<|calls|>",
    "<|/calls|>", "<|call|>", "<|/call|>", "<|sep|>", "<|think|>", "<|/think|>",
)  # fmt: skip

TURN = """\
{%- if tools %}<|system|>Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role != 'assistant' %}<|MESSAGE_ROLE|>{{ message.content }}<|end|>
{%- else %}<|assistant|>REASONING{{ message.content or '' }}
{%- if message.tool_calls %}CALLS{% endif %}<|end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>PROMPT{% endif %}"""

ROLE = (
    "{% if message.role == 'tool' %}<|tool|>{% elif message.role == 'system' %}<|system|>{% else %}<|user|>{% endif %}"
)

THINK = """{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}"""
THINK_SPECIAL = "{% if message.reasoning_content %}<|think|>{{ message.reasoning_content }}<|/think|>{% endif %}"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


def template(calls: str = "", reasoning: str = "", prompt: str = "") -> str:
    """A template that writes calls so."""
    text = TURN.replace("<|MESSAGE_ROLE|>", ROLE).replace("REASONING", reasoning)
    return text.replace("CALLS", calls).replace("PROMPT", prompt)


TAGS = """{% for call in message.tool_calls %}{{ '\\n' if message.content or not loop.first }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}"""

BARE = """{% if message.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}
{%- set call = message.tool_calls[0].function -%}
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}"""

LISTED = """[CALLS] [{% for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have 9 letters') }}{% endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{{- ', ' if not loop.last }}{% endfor %}]"""

NAMED = """{% for call in message.tool_calls %}[CALLS]{{ call.function.name }}[ARGS]
{{- call.function.arguments | tojson }}{% endfor %}"""

NUMBERED = NAMED.replace("[ARGS]", "{{ '<|sep|>' + call.id + '[ARGS]' }}")

FENCED = """{% if message.content is not none %}{{ raise_exception('no content beside calls') }}{% endif %}<|calls|>
{%- for call in message.tool_calls %}<|call|>{{ call.type }}<|sep|>{{ call.function.name + '\\n```json\\n'
 + call.function.arguments + '\\n```' }}<|/call|>{{ '\\n' if not loop.last }}{% endfor %}<|/calls|>"""

MARKED = """<|call|>[{% for call in message.tool_calls %}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
{{- ', ' if not loop.last }}{% endfor %}]"""
MARKED = MARKED.replace("%}\n{", "%}{")

FUNCTION = """{% for call in message.tool_calls %}<function={{ call.function.name }}>
{{- call.function.arguments | tojson }}</function>{% endfor %}"""

LINES = """<|calls|>{% for call in message.tool_calls %}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
{%- endfor %}
<|/calls|>"""
LINES = LINES.replace('%}\n{"', "%}{{ '\\n' }}{\"").replace("%}\n<", "%}{{ '\\n' }}<")

ACTION = """Action: ```json
[{% for call in message.tool_calls %}
{"tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}
{{- ', ' if not loop.last }}{% endfor %}]```"""

CALLS = {
    "tags": TAGS, "bare": BARE, "listed": LISTED, "named": NAMED, "fenced": FENCED, "marked": MARKED,
    "function": FUNCTION, "lines": LINES, "action": ACTION, "numbered": NUMBERED,
}  # fmt: skip


def tokenizer_with(source: str | None, specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """A small tokenizer with this template."""
    return Tokenizer.train(SENTENCES * 3, 400, specials, chat_template=source)
