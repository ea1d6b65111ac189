"""Templates that mean harm: they are stopped, quickly, in little memory, and reach nothing of Python."""

from __future__ import annotations

import resource
import sys
import time

import pytest

from openbook.errors import InputError, TokenizerError
from openbook.text import Tokenizer
from tests.text.kinds import SENTENCES

MESSAGES = [{"role": "user", "content": "hello"}]
BIG = "{% set s = 'a' * 3000000 %}{% set t = 'a' * 2999999 ~ 'b' %}"  # equal to their last letter
MANY = "{% for a in range(90000) %}"
GROW = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{{ range(10000000000) | list }}",
    "writing": "{% for a in range(99999) %}" + "text " * 2000 + "{% endfor %}",
    "printing": "{% for a in range(99999) %}{{ 'x' * 5000 }}{% endfor %}",
    "concatenation": grow("'a'", "ns.x ~ ns.x"),
    "addition": grow("'a'", "ns.x + ns.x"),
    "lists": grow("[]", "[ns.x, ns.x]"),
    "tuples": grow("()", "(ns.x, ns.x)"),
    "dicts": grow("{}", "{1: ns.x, 2: ns.x}"),
    "dict": grow("{}", "dict(a=ns.x, b=ns.x)"),
    "list addition": grow("[1]", "ns.x + ns.x"),
    "numbers": grow("9999", "ns.x * ns.x"),
    "power": "{{ 10 ** 10000000000 }}",
    "repetition": "{{ 'a' * 100000000000 }}",
    "list repetition": "{{ [0] * 100000000000 }}",
    "capture": GROW.replace("START", "''").replace(" = STEP %}", " %}{{ [ns.x, ns.x] }}{% endset %}"),
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace by name": "{{ ('a' * 100000) | replace(new='b' * 100000, old='a') }}",
    "join of a generator": "{{ ('b' * 100000).join(range(100000) | map('string')) }}",
    "join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join filter": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "join by name": "{{ (['a'] * 100000) | join(d='b' * 100000) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "percent many": "{{ ('%s' * 100000) % ('a' * 100000,) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format many": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "format filter": "{{ '%9999999999d' | format(1) }}",
    "indent": "{{ 'a\nb' | indent(10000000000) }}",
    "indent text": "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "json": "{{ [[1]] | tojson(indent=1000000000) }}",
    "dates": "{{ strftime_now('%999999999Y') }}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "bushy recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "loop recursion": "{% for a in [[]] recursive %}{{ loop([a]) }}{% endfor %}",
    "parentheses": "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
    "blocks": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "calls": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 40 + "{% endcall %}" * 40,
    "loops that take nothing": MANY + "{% for b in range(90000) if false %}{% endfor %}{% endfor %}",
    "cheap steps": MANY + "{% set x = 1 %}" * 3000 + "{% endfor %}",
    "comparing": BIG + MANY + "{% if s == t %}{% endif %}" * 100 + "{% endfor %}",
    "searching": BIG + MANY + "{% if 'ba' in s %}{% endif %}" * 100 + "{% endfor %}",
    "comparing with the last": BIG
    + MANY
    + "{% if loop.changed(s if a % 2 else t) %}{% endif %}" * 100
    + "{% endfor %}",
    "slices": BIG + MANY + "{% set x = s[1:] %}{% endfor %}",
    "selecting by search": BIG + "{{ range(90000) | map('string') | select('in', s) | list }}",
    "counting in a list": "{% set l = ['a' * 999] * 99999 %}"
    + MANY
    + "{% if l.count('b' * 999) %}{% endif %}{% endfor %}",
    "sorting": MANY + "{% set x = (['a' * 999] * 999) | sort %}{% endfor %}",
    "separators": "{{ ([0] * 100000) | tojson(separators=('a' * 100000, ':')) }}",
    "indent of text": "{{ ([[0]] * 10000) | tojson(indent='a' * 99999) }}",
    "marked text": "{{ (('a' * 100000) | safe).replace('a', 'b' * 100000) }}",
    "joined by marked text": "{{ (('b' * 100000) | e).join(['a'] * 100000) }}",
    "views": GROW.replace("STEP", "dict(a=ns.x, b=ns.x).values()").replace("START", "1").replace("60", "20")
    + "{{ ns.x }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "sum of lists": "{{ ([[0]] * 100000) | sum(start=[]) }}",
    "center": "{{ 'a'.center(10000000000) }}",
    "zeros": "{{ 'a'.zfill(10000000000) }}",
    "tabs": "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "format map": "{{ ('{a}' * 100000).format_map({'a': 'a' * 100000}) }}",
    "splitting": "{{ ('的 ' * 2000000).split() }}",
    "letters": "{{ ('的' * 4000000) | list | length }}",
    "number addition": "{% set ns = namespace(x=9) %}" + MANY + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "filter block": "{% filter replace('a', 'b' * 100000) %}{{ 'a' * 100000 }}{% endfilter %}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ namespace.__init__.__globals__ }}",
    "function": "{{ raise_exception.__globals__ }}",
    "method": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "attribute filter": "{{ '' | attr('__class__') }}",
    "map": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "padding": "{{ 'a'.center(1000000000000) }}",
    "encode": "{{ 'a'.encode('rot13').decode() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "environment": "{{ self._TemplateReference__context.environment.filters }}",
    "budget": "{{ self._TemplateReference__context.parent['openbook budget'].left }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "debug": "{% debug %}",
    "do": "{% do 1 %}",
    "bytes of a number": "{{ (1).to_bytes(10000000000, 'big') }}",
    "counting a range": "{{ range(100000).count('a') }}",
    "from": "{% from 'os' import path %}",
    "extends": "{% extends '/etc/passwd' %}",
    "ignored include": "{% include ['x', '/etc/passwd'] ignore missing %}",
    "cycler's function": "{{ cycler.__globals__ }}",
    "cycler's method": "{{ cycler('a').next.__func__ }}",
    "marked format": "{{ ('{0.__globals__}' | safe).format(cycler) }}",
    "grouping": "{{ [cycler] | sum(attribute='__globals__') }}",
    "mro": "{{ namespace.mro() }}",
    "generator": "{{ (messages | map('upper')).gi_frame }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "loop": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "view": "{{ messages[0].keys().mapping }}",
    "dict": "{{ dict.__call__.__globals__ }}",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES, 300)


# Those that use the whole of their budget in small coin.
LONG = {"calls", "cheap steps", "dict", "dicts", "join of a generator", "lists", "tuples", "views"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in BOMBS])
def test_bombs(name: str, tokenizer: Tokenizer) -> None:
    hostile = tokenizer.with_chat_template(BOMBS[name])
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TokenizerError, match="more work than a chat template may"):
        hostile.chat(MESSAGES)
    spent, grown = time.thread_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert spent < 10  # less than one on a quiet machine
    assert grown * (1 if sys.platform == "darwin" else 1024) < 300 * 2**20


@pytest.mark.parametrize("name", ESCAPES)
def test_escapes(name: str, tokenizer: Tokenizer) -> None:
    hostile = tokenizer.with_chat_template("before " + ESCAPES[name])
    try:
        text = hostile.render_chat(MESSAGES)
    except (TokenizerError, InputError):
        return
    assert text == "before "  # an attribute that may not be read is undefined, and undefined is written as nothing


def test_what_refers_to_itself_is_written_by_its_name(tokenizer: Tokenizer) -> None:
    template = (
        "{% set ns = namespace() %}{% for i in range(99) %}{% set ns.x = namespace(a=ns, b=ns.x, c=ns.x) %}{% endfor %}"
    )
    assert tokenizer.with_chat_template(template + "{{ ns.x }}").render_chat(MESSAGES) == "<Namespace>"


def test_a_refusal_is_short(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError) as refused:
        tokenizer.with_chat_template("{{ raise_exception('a' * 1000000) }}").chat(MESSAGES)
    assert len(str(refused.value)) < 2000


def test_the_messages_stay_as_they_are(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": ["a"]}]
    tokenizer.with_chat_template("{% set messages = [] %}x").chat(messages)
    assert messages == [{"role": "user", "content": ["a"]}]


def test_a_long_conversation_is_no_bomb(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(2000)]
    template = """{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ '<|user|>' ~ m.content
    ~ m.content.replace('word', 'other') + m['content'].split(' ')[-1] }}{% endfor %}"""
    assert len(tokenizer.with_chat_template(template).render_chat(messages)) > 4_000_000


def test_what_templates_do_every_day(tokenizer: Tokenizer) -> None:
    everyday = """
{%- set ns = namespace(found=false, list=[1]) -%}
{%- macro show(x, y='d') %}{{ x }}:{{ y }};{% endmacro -%}
{%- for m in messages[::-1] if m.role == 'user' %}{{ loop.index }}{% set ns.found = true %}{% break %}{% endfor -%}
{{- show('a') }}{{ show('b', y=2) }}{{ ns.found }} {{ messages | length }} {{ messages[0]['content'][1:3] | upper -}}
{{- ['b', 'a'] | sort | join(', ') }} {{ {'b': 1, 'a': 2} | dictsort | first | first }} {{ none is none -}}
{{- 'a,b'.split(',')[1] }} {{ '%s-%03d' | format('x', 7) }} {{ '{}!'.format('é') }} {{ 'x' if 1 in [1] else 'y' -}}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }} {{ nothing is defined -}}
{{- 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 1.5 * 2 }} {{ 'ab' * 2 }} {{ range(3) | list | tojson }} {{ ['x'] + ['y'] -}}
{%- for key, value in {'k': 'v'}.items() %}{{ key ~ '=' ~ value }}{% else %}none{% endfor -%}
{%- set captured %}inner{% endset %}{{ captured | indent(2, true) }}{{ strftime_now('%Y') | length -}}
{{- 3.14159 | round(2) }}"""
    text = tokenizer.with_chat_template(everyday).render_chat(MESSAGES)
    assert text == (
        "1a:d;b:2;True 1 ELa, b a Trueb x-007 é! x['hello'] False3 3 32 3.0 abab [0, 1, 2] ['x', 'y']k=v  inner43.14"
    )
