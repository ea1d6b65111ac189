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

# Tools, reasoning, documents and marks of what to learn, by way of macros, namespaces and slices.
TALL = """\
{%- macro schema(value, depth=0) -%}
    {%- if value.type == 'object' -%}
        {{- '{' }}
        {%- for name, inner in value.properties | dictsort -%}
            {{- ('  ' * (depth + 1)) ~ name ~ ('' if name in (value.required or []) else '?') ~ ': ' -}}
            {{- schema(inner, depth + 1) }}{{ '' if loop.last else ', ' -}}
        {%- endfor -%}
        {{- '}' }}
    {%- elif value.enum is defined -%}
        {{- value.enum | map('tojson') | join(' | ') -}}
    {%- elif value.type == 'array' -%}
        {{- schema(value['items'], depth) ~ '[]' -}}
    {%- else -%}
        {{- value.type -}}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=-1, system='', calls=0) -%}
{%- if messages[0].role in ('system', 'developer') -%}
    {%- set ns.system = messages[0].content | trim -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns[::-1] -%}
    {%- if message.role == 'user' and ns.last < 0 -%}{%- set ns.last = loop.revindex0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token }}<|system|>{{ ns.system or 'You help.' }}
{%- if tools %}
{{ '\\n# Tools\\n' }}
    {%- for tool in tools if tool.function is defined -%}
        {%- set function = tool.function -%}
        {{- function.name ~ '(' ~ schema(function.parameters) ~ ') // ' ~ function.description | replace('\\n', ' ') -}}
        {{- '\\n' ~ tool | tojson(indent=2) ~ '\\n' -}}
    {%- endfor -%}
{%- endif -%}
{%- if documents %}
    {%- for document in documents -%}
        {{- '\\n[' ~ loop.index ~ '] ' ~ document['title'] | upper ~ ': ' ~ document.get('text', '') -}}
    {%- endfor -%}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- for message in turns %}
    {%- if message.content is string %}{% set content = message.content %}
    {%- elif message.content is mapping %}{% set content = message.content | tojson %}
    {%- elif message.content is iterable %}
        {%- set content = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') %}
    {%- else %}{% set content = '' %}{% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' -}}
        {%- generation -%}
        {%- if message.reasoning_content is defined and loop.index0 > ns.last -%}
            {{- '<think>' + message.reasoning_content.strip('\\n') + '</think>\\n' -}}
        {%- elif '</think>' in content -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{- content -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set ns.calls = ns.calls + 1 -%}
            {%- set arguments = call.function.arguments -%}
            {{- '\\n<call ' ~ ns.calls ~ '>' ~ call['function']['name'] ~ ' ' -}}
            {{- arguments if arguments is string else arguments | tojson(separators=(',', ':')) -}}
            {{- '</call>' -}}
        {%- endfor -%}
        {{- '<|end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- elif message.role in ['tool', 'ipython'] %}
        {%- if loop.first or loop.previtem.role != message.role %}{{ '<|user|>' }}{% endif -%}
        {{- '<result>' ~ content ~ '</result>' -}}
        {%- if loop.last or loop.nextitem.role != message.role %}{{ '<|end|>\\n' }}{% endif -%}
    {%- elif message.role == 'user' %}
        {{- '<|user|>' ~ content ~ '<|end|>\\n' -}}
    {%- else -%}
        {{- raise_exception('Unknown role: ' ~ message.role) -}}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>\\n' }}{% endif %}
{%- endif %}"""

# Pictures among the parts of a message, numbered, with the tokens that stand for them.
IMAGES = """\
{% set count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
<|system|>
You see.<|end|>
{% endif %}<|{{ message['role'] }}|>
{% if message['content'] is string %}{{ message['content'] }}<|end|>
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
{% set count.value = count.value + 1 %}{% if add_vision_id %}Picture {{ count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

# What else the language has: templates in the wild use any of it.
CONSTRUCTS = """\
{%- set comma = joiner(', ') -%}{%- set turn = cycler('a', 'b') -%}
{%- macro quoted(text, mark="'") %}{{ mark ~ (caller() if caller is defined else '') ~ text ~ mark }}{% endmacro -%}
{%- for role, group in messages | groupby('role') %}{{ comma() }}{{ role }}={{ group | length }}{% endfor -%}
{%- for pair in messages | batch(2, none) %}[{{ pair | map(attribute='role', default='-') | join('/') }}]{% endfor -%}
{%- for column in messages | slice(2) %}({{ column | length }}){% endfor -%}
{%- for message in messages recursive %}
    {%- set content = message.content | default('', true) -%}
    {%- filter trim | upper %}  {{ turn.next() }}{{ loop.depth }} {% endfilter -%}
    {%- if not content %}{% continue %}{% endif -%}
    {%- if loop.index > 9 %}{% break %}{% endif -%}
    {{- '<|user|>' if message['role'] == 'user' else '<|assistant|>' -}}
    {%- call quoted(content | string | truncate(30, true, '…')) %}>{% endcall -%}
    {{- ' %s|%05.1f|%-4s|' | format(message.role, loop.index * 1.5, 'x') ~ '{:>6}{!r}'.format('é', 'q') -}}
    {{- (content | string).split() | first | default('none') | center(12) ~ '|' ~ (loop.index | string).zfill(3) -}}
    {%- set content = content | string %}
    {{- content | wordcount ~ content[:5][::-1] ~ (content | list | unique | list | length) -}}
    {{- [loop.index, 3, 2] | sort(reverse=true) | join('<') ~ [1, 2, 3] | sum ~ [4, 9] | max ~ -7 // 2 ~ 2 ** 3 -}}
    {{- '<&>' | e ~ '<&>' | forceescape | safe ~ 'a b/ü' | urlencode ~ 12345 | filesizeformat -}}
    {{- (1 if loop.index is odd else 2) ~ (loop.index is divisibleby 2) ~ (3 in [1, 2]) ~ ('a' is in 'abc') -}}
    {{- ('x' * 2, 'y') | join('-') ~ {'b': 1, 'a': [true, none]} | tojson ~ {'k': 'v'} | items | list -}}
    {{- '<|end|>' ~ '\\n' -}}
{%- endfor -%}
{%- set block %}{{ '%d' % (messages | length) }}{% endset -%}
{{- block | int + 1 }}{% raw %}{{ raw }}{% endraw %}{# nothing #}
{%- with texts = messages | selectattr('content', 'string') | map(attribute='content') %}
    {{- ':' ~ texts | map('length') | sum -}}
{%- endwith -%}
{%- for tool in tools or [] -%}
    {{- tool.function.name.replace('_', ' ').title() ~ tool.function.parameters.properties.keys() | list }}
{%- else %}none{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
