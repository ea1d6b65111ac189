"""Grammars made of others, in the Lark syntax of `llguidance`: calls of functions, and what follows reasoning.

    answer     reasoning? ( calls | otherwise )          otherwise: any text, or a grammar
    calls      text? start call (separator call)* end    text: where any text is allowed, up to what opens a call
    call       opens {"name": …, "arguments": …} closes  or  opens name between (id behind)? … closes

A mark is text, or a special token demanded by its id: `<[7]>`. Texts are lexemes of a lexer that takes the longest one
and does not go back, hence three rules: any text ends lazily at a mark, it does not begin like reasoning where
reasoning may begin, and where a call is nothing but a JSON object it does not begin like one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from openbook.errors import Refusal
from openbook.generate.grammars import Calls, Grammar, Json, Mark, Marks, Piece, Reasoned, Schema

FREE = '\n%llguidance {"no_forcing": true}\n'  # every split of a text into tokens is allowed
ANY = "/(?s:.*)/"
SPACE = "[ \\n\\r\\t]"
GAP = "SPACE: /[ \\n\\r\\t]{1,8}/\n"  # between reasoning and what follows
OBJECT = '{"type":"object"}'

Source = Callable[[Grammar], str]


def composed(grammar: Calls | Reasoned, source: Source) -> dict[str, str]:
    """Grammars by name, the first of which is the whole; `source` writes those that hold no others."""
    if isinstance(grammar, Calls):
        return _calls(grammar, source, "")
    opening, closing = joined(grammar.opening), joined(grammar.closing)
    inner = grammar.then
    barred = "" if grammar.begun or not isinstance(opening[0], str) else opening[0].strip()
    parts = _calls(inner, source, barred) if isinstance(inner, Calls) else {"main": source(inner)}
    rule = "reasoning SPACE? @main"
    rules = f"start: {rule if grammar.begun else f'@main | {_lark(opening)} {rule}'}\n" + GAP
    if isinstance(closing[0], str):
        rules += f"reasoning: closed {_lark(closing[1:])}\nclosed[lazy]: {ANY} {_text(closing[0])}\n"
    else:
        rules += f"reasoning: ANY {_lark(closing)}\nANY: {ANY}\n"
    return {"answer": rules + FREE, **parts}


def _calls(calls: Calls, source: Source, barred: str) -> dict[str, str]:
    """`barred`: with what any text must not begin."""
    marks = calls.marks
    opening = joined(marks.start + marks.opens)
    bare = not opening
    if bare and isinstance(calls.otherwise, Schema | Json) and not calls.required:
        return {"main": source(_one_of(calls, calls.otherwise))}
    heads, tail = _heads(calls), _tail(marks)
    number = f"/{_letters(marks)}/ {_lark(joined(marks.behind))} " if marks.behind else ""
    free = calls.otherwise is None and not calls.required
    lead, first = ("", opening) if bare or not free else _split(opening)
    begin = joined(marks.separator + marks.opens)
    rules = [f"start: {'' if calls.required else 'otherwise | '}calls"]
    several = calls.parallel and not bare
    rules += [f"calls: {'lead ' if lead else ''}first {'more* ' if several else ''}{_lark(joined(marks.end))}"]
    rules += [f"first: {' | '.join(f'first_{i}' for i in range(len(heads)))}"]
    rules += [f"first_{i}: {_lark(joined(first + head))} {number}@arguments_{i} {tail}" for i, head in enumerate(heads)]
    if several:
        rules += [f"more: {' | '.join(f'more_{i}' for i in range(len(heads)))}"]
        rules += [
            f"more_{i}: {_lark(joined(begin + head))} {number}@arguments_{i} {tail}" for i, head in enumerate(heads)
        ]
    parts = {f"arguments_{i}": source(arguments) for i, (_, arguments) in enumerate(calls.functions)}
    if free:
        rules += _free(lead, marks, barred)
    elif not calls.required and calls.otherwise is not None:
        rules += ["otherwise: @otherwise"]
        parts["otherwise"] = source(calls.otherwise)
    return {"main": "\n".join(rules) + FREE, **parts}


def _heads(calls: Calls) -> list[Mark]:
    """What stands between the mark that opens a call and its arguments (or its id), for each function."""
    marks = calls.marks
    if marks.keys is None:
        return [(name, *marks.between) for name, _ in calls.functions]
    name_key, arguments_key = map(json.dumps, marks.keys)
    return [(f"{{{name_key}: {json.dumps(name)}, {arguments_key}: ",) for name, _ in calls.functions]


def _letters(marks: Marks) -> str:
    """A regular expression for ids."""
    return "[A-Za-z0-9]" + ("{1,64}" if marks.id_length is None else f"{{{marks.id_length}}}")


def _tail(marks: Marks) -> str:
    """What stands after arguments."""
    if marks.keys is None:
        return _lark(joined(marks.closes))
    number = ""
    if marks.id_key is not None:
        size = "{1,64}" if marks.id_length is None else f"{{{marks.id_length}}}"
        number = f'({_text(f", {json.dumps(marks.id_key)}: ")} /"[A-Za-z0-9]{size}"/)? '
    return number + _lark(joined(("}", *marks.closes)))


def _split(opening: Mark) -> tuple[str, Mark]:
    """The rule for text up to what opens calls, white space in it as free as it is to who reads it; and the rest."""
    first = opening[0]
    if isinstance(first, int):
        return f"lead: TEXT <[{first}]>", opening[1:]
    words = f"{SPACE}*".join(map(literal, first.split()))
    return f"lead[lazy]: TEXT /{words}/", joined((first[len(first.rstrip()) :], *opening[1:]))


def _free(lead: str, marks: Marks, barred: str) -> list[str]:
    """Rules for any text, and for text up to the mark that opens calls."""
    text = [ANY]
    if barred:
        text.append(f"~/{SPACE}*{literal(barred)}(?s:.*)/")
    if not lead and marks.keys is not None:
        text.append(f"~/{SPACE}*\\{{{SPACE}*{literal(json.dumps(marks.keys[0]))}(?s:.*)/")
    return ["otherwise: TEXT", f"TEXT: {' & '.join(text)}", lead]


def _one_of(calls: Calls, otherwise: Schema | Json) -> Schema:
    """Calls that are nothing but JSON objects, or another JSON document: one schema."""
    assert calls.marks.keys is not None
    name_key, arguments_key = calls.marks.keys
    options = [_moved(_parsed(otherwise), "#/anyOf/0")]
    for place, (name, arguments) in enumerate(calls.functions, 1):
        inner = _moved(_parsed(arguments), f"#/anyOf/{place}/properties/{arguments_key}")
        options.append(
            {
                "type": "object",
                "properties": {name_key: {"const": name}, arguments_key: inner},
                "required": [name_key, arguments_key],
                "additionalProperties": False,
            }
        )
    return Schema.of({"anyOf": options})


def _parsed(schema: Schema | Json) -> Any:
    return json.loads(schema.text if isinstance(schema, Schema) else OBJECT)


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references are right where it stands at `place` in another one."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$anchor" in schema or "$id" in schema:
        raise Refusal("A schema with `$anchor` or `$id` cannot be combined with the calls of this model. Use `$ref`.")
    moved = {key: _moved(value, place) for key, value in schema.items()}
    if isinstance(target := schema.get("$ref"), str):
        moved["$ref"] = place + target.removeprefix("#")
    return moved


def joined(mark: Mark) -> Mark:
    """A mark with neighbouring texts in one, and nothing empty."""
    pieces: list[Piece] = []
    for piece in mark:
        last = pieces[-1] if pieces else None
        if isinstance(piece, str) and isinstance(last, str):
            pieces[-1] = last + piece
        elif piece != "":
            pieces.append(piece)
    return tuple(pieces)


def literal(text: str) -> str:
    """A regular expression for one text."""
    return "".join(c if c.isalnum() or c > "\x7f" else f"\\x{ord(c):02x}" for c in text)


def _lark(mark: Mark) -> str:
    return " ".join(f"<[{piece}]>" if isinstance(piece, int) else _text(piece) for piece in mark)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
