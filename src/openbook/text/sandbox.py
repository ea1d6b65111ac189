"""Jinja for templates that came with a checkpoint: they can compute text and nothing else, and only so much of it.

A chat template is a program written by a stranger. Jinja's sandbox keeps it from reaching Python; it does not keep it
from running for a year or filling the memory (`x = x ~ x` forty times, or two nested loops). Here every step is paid
for from a budget before it is done: a loop step, a call, every string and list that is made, weighed with all that it
holds. The budget grows with the size of the messages, so a long conversation is never refused.

Where the steps are caught: operators and calls by the sandbox's own hooks, filters by wrapping them, loops, literals
and `~` by a rewrite of the parsed template, output by `finalize`. Only the filters and string methods listed here
exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from openbook.errors import InputError, TokenizerError
from openbook.text.budget import STEP, WIDTH, Budget, Overrun

BUDGET = "openbook budget"  # no template can spell a variable with a space in it

_STRING_METHODS = {
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip",
    "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
}  # fmt: skip
_FILTERS = {
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format", "indent",
    "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
}  # fmt: skip


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, as transformers defines it, with a budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, start: str, end: str) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.extend(generation_marks=(start, end))
        self.filters = {name: _paid(name, _tojson if name == "tojson" else self.filters[name]) for name in _FILTERS}
        self.globals = {
            "range": self.globals["range"],
            "dict": _Dict(),
            "namespace": jinja2.utils.Namespace,
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "%" and isinstance(left, str):
            budget.pay_format(left, "%", right)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            budget.pay_number(operator, left, right)
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                budget.spend(budget.weigh(sequence) * max(times, 0))
        result = super().call_binop(context, operator, left, right)
        budget.weigh(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # named as in jinja2
        budget = _budget(__context)
        budget.spend(STEP)
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        if isinstance(method, BuiltinMethodType) and isinstance(method.__self__, str):
            if method.__name__ == "join" and args:
                args = (list(args[0]), *args[1:])  # a generator would be used up by weighing it
            budget.pay_method(method.__self__, method.__name__, [*args, *kwargs.values()])
        result = super().call(__context, __obj, *args, **kwargs)
        budget.weigh(result)
        return result

    # What the rewritten template calls; see _Meter.

    @staticmethod
    @jinja2.pass_context
    def pay(context: Context, work: int) -> str:
        """Pay for one step of a loop, or one use of a macro, that writes `work` characters of the template itself."""
        _budget(context).spend(STEP + work)
        return ""

    @staticmethod
    @jinja2.pass_context
    def made(context: Context, value: Any) -> Any:
        """Pay for a list, a tuple or a dict written in the template."""
        _budget(context).weigh(value)
        return value

    @staticmethod
    @jinja2.pass_context
    def concat_paid(context: Context, *parts: Any) -> str:
        """The `~` operator."""
        _budget(context).weigh(parts)
        return "".join(map(str, parts))

    def compile_metered(self, source: str, rename: Callable[[str], str]) -> jinja2.Template:
        """Compile `source` with `rename` applied to all text written in it."""
        tree = _Meter(rename).visit(self.parse(source))
        return self.from_string(tree)


class _Meter(NodeTransformer):
    """Put payments into a parsed template, and rename its literal text."""

    def __init__(self, rename: Callable[[str], str]) -> None:
        self._rename = rename

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        node.data = self._rename(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, str):
            node.value = self._rename(node.value)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_paid", node.nodes, node.lineno)

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node
        return _call("made", [node], node.lineno)

    visit_List = visit_Dict = visit_Tuple = _literal

    def _body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        work = sum(len(data.data) for child in node.body for data in _all(child, nodes.TemplateData))
        payment = _call("pay", [nodes.Const(work, lineno=node.lineno)], node.lineno)
        node.body = [nodes.ExprStmt(payment, lineno=node.lineno), *node.body]
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _body


def _all(node: nodes.Node, kind: type[nodes.TemplateData]) -> list[nodes.TemplateData]:
    found = list(node.find_all(kind))
    return [*found, node] if isinstance(node, kind) else found


def _call(method: str, args: list[Any], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, args, [], None, None, lineno=line)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` around what the assistant says, marked so that it can be found."""

    tags = {"generation"}  # noqa: RUF012 — as jinja2 wants it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (
            nodes.Output([nodes.TemplateData(mark, lineno=line)], lineno=line)
            for mark in self.environment.generation_marks  # type: ignore[attr-defined]  # put there by Sandbox
        )
        return [start, *body, end]


class _Dict:
    """`dict(a=1)`, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


@jinja2.pass_context
def _finalize(context: Context, value: Any) -> Any:
    _budget(context).weigh(value)
    return value


def _paid(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, a filter, with its cost paid before it runs, and its result after."""
    wants = str(getattr(function, "jinja_pass_arg", ""))

    @jinja2.pass_context
    def paid(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend(STEP)
        if name == "join":
            value = list(value)
        budget.pay_filter(name, value, [*args, *kwargs.values()])
        first: tuple[Any, ...] = ()
        if "eval_context" in wants:
            first = (context.eval_ctx,)
        elif "environment" in wants:
            first = (context.environment,)
        elif "context" in wants:
            first = (context,)
        result = function(*first, value, *args, **kwargs)
        budget.weigh(result)
        return result

    return paid


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> str:
    raise InputError(f"The chat template refuses these messages: {message}")


def _strftime_now(pattern: object) -> str:
    if re.search(r"\d{3,}", str(pattern)) or len(str(pattern)) > WIDTH:
        raise Overrun
    return datetime.now().strftime(str(pattern))


def refusal(error: BaseException, what: str) -> Exception:
    """The error to raise for `error`, which compiling or rendering the template `what` raised."""
    if isinstance(error, InputError | TokenizerError):
        return error
    if isinstance(error, Overrun | OverflowError | MemoryError | RecursionError):
        return TokenizerError(
            f"{what} does more work than a chat template may. Do not use it: it would exhaust the machine."
        )
    if isinstance(error, jinja2.exceptions.SecurityError):
        return TokenizerError(f"{what} tries to leave its sandbox ({error}). Do not use this checkpoint.")
    if isinstance(error, jinja2.TemplateSyntaxError):
        return TokenizerError(f"{what} is not a valid template (line {error.lineno}: {error.message}). Correct it.")
    if isinstance(error, jinja2.UndefinedError):
        return InputError(f"{what} needs something that these messages do not have: {error}.")
    return InputError(f"{what} cannot render these messages: {type(error).__name__}: {error}.")
