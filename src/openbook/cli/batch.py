"""`openbook generate DIR --batch FILE.jsonl --out FILE.jsonl`: a file of prompts through the engine, with progress.

Each line is a JSON object with `prompt` (a text) or `messages` (a conversation), and whatever it wants other than the
command line says, by the names of the options (`max_tokens`, `temperature`, `seed`, `stop`, `n`, …), `adapter`, and at
most one of `schema` (a JSON schema), `regex`, `choice` (texts) and `lark`. Each output is a line as soon as it is done,
with the `index` of its line; asked again, the same command goes on with the lines that are missing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from openbook import log
from openbook.errors import InputError, OpenbookError, UsageError, nearest

if TYPE_CHECKING:
    from openbook.chat.engine import Engine, Output
    from openbook.generate.sampling import Sampling

GRAMMARS = ("schema", "regex", "choice", "lark")
OTHERS = ("prompt", "messages", "adapter", "id", *GRAMMARS)


@dataclass(frozen=True)
class Line:
    """One request of the file."""

    index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None
    id: str | None


def run(engine: Engine, path: Path, out: Path | None, sampling: Sampling) -> int:
    """Every line of `path` that `out` does not have yet; 1 if some of them failed on their own."""
    lines = list(read(path, sampling, engine))
    done = finished(out, {line.index for line in lines})
    left = [line for line in lines if line.index not in done]
    if done and left:
        log.note(f"{len(done):,} of {len(lines):,} lines are done; going on with the others.")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    sink: IO[str] = sys.stdout if out is None else out.open("a", encoding="utf-8")
    try:
        failed = _through(engine, left, sink)
    finally:
        if out is not None:
            sink.close()
    if failed:
        log.fail(f"{failed:,} of {len(left):,} lines failed; their `error` says why.")
    return 1 if failed else 0


def _through(engine: Engine, lines: list[Line], sink: IO[str]) -> int:
    from openbook.cli.progress import Progress

    failed = 0
    waiting: dict[int, list[dict[str, Any]]] = {}
    with Progress("writing", len(lines)) as shown:
        began = time.monotonic()
        tokens = 0

        def heard(output: Output) -> None:
            nonlocal failed, tokens
            line = lines[output.prompt]
            waiting.setdefault(output.prompt, []).append(_record(output))
            tokens += len(output.ids)
            if len(waiting[output.prompt]) < line.sampling.n:
                return
            outputs = sorted(waiting.pop(output.prompt), key=lambda record: record["choice"])
            failed += any(record["finish"] == "error" for record in outputs)
            head: dict[str, Any] = {"index": line.index} | ({} if line.id is None else {"id": line.id})
            sink.write(json.dumps(head | {"outputs": outputs}, ensure_ascii=False) + "\n")
            sink.flush()
            shown.advance(f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s")

        engine.generate(
            [line.prompt for line in lines],
            [line.sampling for line in lines],
            adapter=[line.adapter for line in lines],
            on_output=heard,
        )
    return failed


def read(path: Path, sampling: Sampling, engine: Engine) -> Iterator[Line]:
    """The requests of a file; errors name the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text (byte {error.start}).") from error
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield _line(number - 1, json.loads(raw), sampling, engine)
        except json.JSONDecodeError as error:
            raise InputError(f"'{path}', line {number}, is not JSON: {error.msg} at column {error.colno}.") from error
        except RecursionError as error:
            raise InputError(f"'{path}', line {number}, is nested too deeply.") from error
        except OpenbookError as error:
            raise InputError(f"'{path}', line {number}: {error}") from error


def _line(index: int, value: object, sampling: Sampling, engine: Engine) -> Line:
    if not isinstance(value, dict):
        raise InputError(f"a line is a JSON object with `prompt` or `messages`: got {type(value).__name__}.")
    known = [field.name for field in fields(sampling) if field.name not in ("grammar", "logit_bias")]
    for key in value:
        if key not in known and key not in OTHERS:
            raise InputError(f"unknown key `{key}`.{nearest(key, [*known, *OTHERS])}")
    return _request(index, value, known, sampling, engine)


def _request(index: int, value: dict[str, Any], known: list[str], sampling: Sampling, engine: Engine) -> Line:
    if ("prompt" in value) == ("messages" in value):
        raise InputError("give `prompt` (a text) or `messages` (a conversation), one of them.")
    changed: dict[str, Any] = {key: _plain(value[key]) for key in value if key in known}
    own = replace(sampling, **changed, **_grammar(value))
    asked = value["prompt"] if "prompt" in value else value["messages"]
    if "prompt" in value and not isinstance(asked, str):
        raise InputError(f"`prompt` must be a text: got {type(asked).__name__}.")
    if "messages" in value and not (isinstance(asked, list) and all(isinstance(one, dict) for one in asked)):
        raise InputError("`messages` must be a list of objects with `role` and `content`.")
    prompt = tuple(engine.prompt_of(asked))
    engine.core.check([prompt], [own])
    adapter, name = value.get("adapter"), value.get("id")
    engine.check_adapter(adapter)
    if name is not None and not _writable(str(name)):
        raise InputError("`id` holds half a character (a lone surrogate): it could not be written to the output.")
    return Line(index, prompt, own, adapter, None if name is None else str(name))


def _grammar(value: Mapping[str, Any]) -> dict[str, Any]:
    from openbook.generate import grammars

    given = [name for name in GRAMMARS if name in value]
    if len(given) > 1:
        raise InputError(f"give one of {', '.join(GRAMMARS)}: got {' and '.join(given)}.")
    match given:
        case ["schema"]:
            return {"grammar": grammars.Schema.of(value["schema"])}
        case ["regex"]:
            return {"grammar": grammars.Regex(value["regex"])}
        case ["choice"]:
            return {"grammar": grammars.Choice(value["choice"])}
        case ["lark"]:
            return {"grammar": grammars.Lark(value["lark"])}
        case _:
            return {}


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def finished(out: Path | None, asked: set[int]) -> set[int]:
    """The lines that an earlier run has written; one that was cut off or failed is taken away, and asked again."""
    if out is None or not out.is_file():
        return set()
    whole, found, known = [], set(), set()
    text = out.read_text(encoding="utf-8", errors="replace")
    for raw in filter(None, text.replace("\n", "\n\0").split("\0")):  # lines end with \n alone
        try:
            record = json.loads(raw)
            index = int(record["index"])
            failed = any(one["finish"] in ("error", "deadline") for one in record["outputs"])
        except (ValueError, KeyError, TypeError) as error:
            if raw.endswith("\n"):
                raise UsageError(f"'{out}' is not the output of an earlier run. Choose another --out.") from error
            continue
        known.add(index)
        if not failed:
            found.add(index)
            whole.append(raw if raw.endswith("\n") else raw + "\n")
    if known - asked:
        raise UsageError(f"'{out}' has lines that the input does not have. Choose another --out.")
    from openbook.files import write_atomic

    write_atomic(out, "".join(whole))
    return found


def _record(output: Output) -> dict[str, Any]:
    record: dict[str, Any] = {
        "choice": output.choice,
        "text": output.text,
        "finish": output.finish,
        "prompt_tokens": output.prompt_tokens,
        "cached_tokens": output.cached_tokens,
        "completion_tokens": len(output.ids),
    }
    if output.error is not None:
        record["error"] = output.error
    if output.score is not None:
        record["score"] = output.score
    if output.logprobs is not None:
        record["logprobs"] = [item.as_dict() for item in output.logprobs]
    return record
