"""Chat templates in the shapes that published models use, each written for the tokenizer kind it is tried on."""

from __future__ import annotations

HEADERS = """\
{%- set offset = 0 %}
{%- for message in messages %}
    {%- set turn = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim %}
    {%- if loop.first %}{% set turn = bos_token + turn %}{% endif %}
    {{- turn + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

BRACKETS = """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate.') }}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' ~ message['content'].strip() ~ ' ' + eos_token }}\
{% endif %}{% endfor %}"""

TURNS = """\
{{ bos_token }}{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# The names of the turns are built from pieces, and the end of the sequence stands after the last turn only.
PIECES = """\
{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""

# Rewrites the history: what the assistant thought is left out of all turns but the last. Tools, and calls of them.
THINKING = """\
{%- if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>{% endif %}
{%- for m in messages %}
    {%- set content = m.content or '' %}
    {%- if m.role == 'assistant' %}
        {%- if '</think>' in content and not loop.last %}
            {%- set content = content.split('</think>')[-1].lstrip() %}
        {%- endif %}
        {{- '<|assistant|>\\n' + content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>' ~ call.function | tojson ~ '</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|user|>\\n<tool_response>' ~ content ~ '</tool_response><|end|>\\n' }}
    {%- else %}
        {{- '<|' + m.role + '|>\\n' + content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% if enable_thinking is defined and not enable_thinking %}\
<think></think>{% endif %}{% endif %}"""

MARKED = """\
{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|>{% generation %}\
{{ message.content }}<|end|>{% endgeneration %}{% else %}{{ '<|user|>' + message.content + '<|end|>' }}{% endif %}\
{% endfor %}"""

CONVERSATION = [
    {"role": "user", "content": "Who crossed the river?"},
    {"role": "assistant", "content": "The fox. 狐狸 🦊"},
    {"role": "user", "content": "  When?\n"},
    {"role": "assistant", "content": "At night."},
    {"role": "user", "content": "Really?"},
]
