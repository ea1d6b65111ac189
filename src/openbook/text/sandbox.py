"""Jinja for templates that came with a checkpoint: they can compute text and nothing else, and only so much of it.

A chat template is a program written by a stranger. Jinja's sandbox keeps it from reaching Python; it does not keep it
from running for a year or filling the memory (`x = x ~ x` forty times, or two nested loops). Here every step is paid
for from a budget before it is done: a loop step, a call, every string and list that is made, weighed with all that it
holds. The budget grows with the size of the messages, so a long conversation is never refused.

Where the steps are caught: operators and calls by the sandbox's own hooks, filters and tests by wrapping them, loops,
literals, slices, comparisons and `~` by a rewrite of the parsed template, output by `finalize`. Only the filters and
methods listed here exist. A list is paid for by its length where only its members' places are looked at, and with all
that it holds where it is compared or written: a template may go over a long conversation as often as it likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, KeysView, ValuesView
from datetime import datetime
from types import BuiltinMethodType, MappingProxyType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from openbook.errors import InputError, TokenizerError
from openbook.text.budget import MEMBER, STEP, WIDTH, Budget, Overrun

BUDGET = "openbook budget"  # no template can spell a variable with a space in it

_STRING_METHODS = {
    "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "format_map", "index",
    "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
    "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper", "zfill",
}  # fmt: skip
_METHODS: tuple[tuple[Any, set[str]], ...] = (  # of values; what stands here first decides
    (str, _STRING_METHODS),
    (int | float | complex | bytes, {"is_integer"}),
    (dict, {"get", "items", "keys", "values", "copy"}),
    (list | tuple, {"index", "count", "copy"}),
    (range, {"start", "stop", "step"}),
    (KeysView | ValuesView | ItemsView | MappingProxyType, set()),
)
_FILTERS = {
    "abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "filesizeformat",
    "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list",
    "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "slice", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper",
    "urlencode", "wordcount",
}  # fmt: skip
_LAZY = {"map", "reject", "rejectattr", "select", "selectattr"}  # what they take is paid for as it is taken
_COMPARING = {
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt", "ne",
}  # fmt: skip
_LONGEST_REFUSAL = 1000  # characters


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
        self.tests = {name: _paid_test(name, test) if name in _COMPARING else test for name, test in self.tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "dict": _Dict(),
            "namespace": _Namespace,
            "cycler": _cycler,
            "joiner": _joiner,
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = next((names for kind, names in _METHODS if isinstance(obj, kind)), None)
        if known is not None and attr not in known:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "%" and isinstance(left, str):
            budget.pay_format(left, "%", right)
        elif operator in ("+", "*", "**") and isinstance(left, int) and isinstance(right, int):
            budget.pay_number(operator, left, right)
        elif operator == "*":
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                budget.spend(budget.shallow(sequence) * max(times, 0))
        elif operator == "+":
            budget.shallow(left)
            budget.shallow(right)
        result = super().call_binop(context, operator, left, right)
        budget.shallow(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # named as in jinja2
        if __obj in __self.own:
            return __obj(__context, *args)
        budget = _budget(__context)
        budget.spend(STEP)
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        if isinstance(method, BuiltinMethodType | MethodType):
            owner, given = method.__self__, [*args, *kwargs.values()]
            if isinstance(owner, str):
                if method.__name__ == "join" and args:
                    args = (list(args[0]), *args[1:])  # a generator would be used up by weighing it
                    given = [*args, *kwargs.values()]
                budget.pay_method(owner, method.__name__, given)
            elif isinstance(owner, list | tuple | dict | LoopContext):
                budget.weigh(given)
                budget.compare(owner) if isinstance(owner, list | tuple) else budget.shallow(owner)
        result = super().call(__context, __obj, *args, **kwargs)
        budget.weigh(result)
        return result

    # What the rewritten template calls; see _Meter.

    @staticmethod
    @jinja2.pass_context
    def pay(context: Context, work: int) -> str:
        """Pay for one step of a loop, or one use of a macro, of which the template has `work` characters and parts."""
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

    @staticmethod
    @jinja2.pass_context
    def sliced(context: Context, value: Any) -> Any:
        """Pay for a piece of a string or a list."""
        _budget(context).shallow(value)
        return value

    @staticmethod
    @jinja2.pass_context
    def compared(context: Context, value: Any) -> Any:
        """Pay for one side of a comparison."""
        _budget(context).compare(value)
        return value

    @staticmethod
    @jinja2.pass_context
    def searched(context: Context, value: Any) -> Any:
        """Pay for the right side of `in`."""
        _budget(context).search(value)
        return value

    own = frozenset((pay, made, concat_paid, sliced, compared, searched))

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
        if (isinstance(node, nodes.Tuple) and node.ctx != "load") or _written(node):
            return node
        return _call("made", [node], node.lineno)

    visit_List = visit_Dict = visit_Tuple = _literal

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not _written(node.expr):
            node.expr = _call("compared", [node.expr], node.lineno)
        for operand in node.ops:
            if not _written(operand.expr):
                method = "searched" if operand.op in ("in", "notin") else "compared"
                operand.expr = _call(method, [operand.expr], node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("sliced", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def _file(self, node: Any) -> nodes.Node:
        raise jinja2.exceptions.SecurityError(f"line {node.lineno} wants another file")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _file

    def _body(self, node: Any) -> nodes.Node:
        work = sum(_length(part) for part in node.find_all(nodes.Node))
        self.generic_visit(node)
        payment = _call("pay", [nodes.Const(work, lineno=node.lineno)], node.lineno)
        if isinstance(node, nodes.For) and node.test is not None:  # `pay` is "", so the test decides
            node.test = nodes.Or(payment, node.test, lineno=node.lineno)
        node.body = [nodes.ExprStmt(payment, lineno=node.lineno), *node.body]
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _body


def _length(node: nodes.Node) -> int:
    """What a part of the template costs by being there."""
    text = node.data if isinstance(node, nodes.TemplateData) else node.value if isinstance(node, nodes.Const) else ""
    return len(text) // 16 + 1 if isinstance(text, str) else 1


def _written(node: nodes.Node) -> bool:
    """Whether `node` is a value that stands in the template as it is: it was paid for with its place there."""
    if isinstance(node, nodes.Const):
        return True
    parts = list(node.iter_child_nodes())
    return isinstance(node, nodes.List | nodes.Tuple | nodes.Dict | nodes.Pair) and all(map(_written, parts))


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

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()`, written by its name alone: what it holds may be a thousand times itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _cycler(*items: Any) -> jinja2.utils.Cycler:
    return jinja2.utils.Cycler(*items)


def _joiner(sep: str = ", ") -> jinja2.utils.Joiner:
    return jinja2.utils.Joiner(sep)


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
        given = [*args, *kwargs.values()]
        if name == "join":
            value = list(value)
        if name not in _LAZY:
            budget.pay_filter(name, value, given)
        elif value:
            value = budget.walked(value, MEMBER + budget.weigh(given))
        first: tuple[Any, ...] = ()
        if "eval_context" in wants:
            first = (context.eval_ctx,)
        elif "environment" in wants:
            first = (context.environment,)
        elif "context" in wants:
            first = (context,)
        result = function(*first, value, *args, **kwargs)
        budget.shallow(result)
        return result

    return paid


def _paid_test(name: str, function: Any) -> Callable[..., bool]:
    """`function`, a test that compares, with its cost paid before."""

    @jinja2.pass_context
    def paid(context: Context, value: Any, other: Any) -> bool:
        budget = _budget(context)
        budget.compare(value)
        (budget.search if name == "in" else budget.compare)(other)
        return bool(function(value, other))

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
    raise InputError(f"The chat template refuses these messages: {str(message)[:_LONGEST_REFUSAL]}")


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
