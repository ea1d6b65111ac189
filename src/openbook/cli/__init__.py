"""The command line: `openbook VERB …`. A table of verbs, each in a module of its own, loaded only when it is called.

A verb's module has a config dataclass and `main(args, prog) -> exit status`. Here is what all verbs share: help,
unknown verbs, errors without tracebacks (OPENBOOK_DEBUG=1 shows them), Ctrl-C, closed pipes, exit codes (0 done, 1 it
failed, 2 wrong usage, 130 interrupted).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from openbook import __version__, log
from openbook.errors import OpenbookError, UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One row of the table: where the verb lives, what it does in one line, what its words after the options are."""

    module: str
    help: str
    group: str
    operands: str = ""


def _verb(module: str, group: str, operands: str, help: str) -> Verb:
    return Verb(module=f"openbook.cli.{module}", help=help, group=group, operands=operands)


_MAKE, _USE, _LOOK = "Make a model", "Use a model", "Look inside"
VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "tokenizer train": _verb("tokenizer_train", _MAKE, "TEXT… --out DIR", "learn a tokenizer from text"),
        "tokenizer count": _verb("tokenizer_count", _MAKE, "DIR TEXT…", "count tokens and bytes, and what they cost"),
        "tokenizer compare": _verb(
            "tokenizer_compare", _MAKE, "DIR… --text TEXT…", "tokenizers side by side: a table and a picture"
        ),
        "tokenizer extend": _verb(
            "tokenizer_extend", _MAKE, "DIR --token T…", "new tokens, for a tokenizer and its model"
        ),
        "tokenizer trim": _verb(
            "tokenizer_trim", _MAKE, "DIR --text TEXT… --out DIR", "only the tokens that some text needs"
        ),
        "tokenizer transplant": _verb(
            "tokenizer_transplant", _MAKE, "DIR --tokenizer DIR", "another tokenizer for a model"
        ),
        "data prepare": _verb(
            "data_prepare", _MAKE, "RECIPE|TEXT… --out DIR", "clean text and turn it into shards of tokens"
        ),
        "data inspect": _verb("data_inspect", _LOOK, "PATH…", "what is in text, prepared tokens or a corpus"),
        "data plan": _verb("data_plan", _LOOK, "--size 10TB", "how long a corpus takes, on which machines"),
        "data audit": _verb("data_audit", _LOOK, "TEXT…", "who and what a corpus talks about"),
        "data classifier": _verb(
            "data_classifier", _MAKE, "GOOD BAD --out FILE", "learn from examples which text is good"
        ),
        "data perplexity": _verb("data_perplexity", _MAKE, "GOOD --out FILE", "learn how surprising good text is"),
        "data dedupe": _verb("data_dedupe", _MAKE, "TEXT… --out DIR", "write text without what it has twice"),
        "data decontaminate": _verb(
            "data_decontaminate", _MAKE, "TEXT… --against FILE…", "write text without evaluation items"
        ),
        "pretrain": _verb("pretrain", _MAKE, "RECIPE.toml", "train a model from a recipe; the same command resumes"),
        "chat": _verb("chat", _USE, "DIR|URL", "talk with a model in the terminal"),
        "generate": _verb("generate", _USE, "DIR", "continue prompts"),
        "serve": _verb("serve", _USE, "DIR…", "serve models over HTTP, as the OpenAI API"),
        "key": _verb("key", _USE, "FILE NAME", "make an API key for openbook serve"),
        "top": _verb("top", _USE, "URL", "watch a server at work"),
        "embed": _verb("embed", _USE, "DIR", "vectors of texts"),
        "describe": _verb("describe", _LOOK, "DIR|config.json", "structure, parameters, FLOPs and memory on one page"),
        "doctor": _verb("doctor", _LOOK, "", "what this machine has, and what that means for speed"),
        "bench": _verb("bench", _LOOK, "NAME", "measure against the machine's limit and against a peer"),
        "completion": _verb("completion", "Shell", "bash|zsh|fish", "print the completion script of a shell"),
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Before torch is loaded: how long waiting threads spin before they give the core back. Left to itself GNU's OpenMP
    # spins for milliseconds, and two busy processes on the same cores slow each other down threefold; a decode step,
    # made of many short parts, needs some of it (docs/lab.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000" if args[:1] == ["pretrain"] else "20000")
    log.show_warnings_plainly()
    try:
        status = _dispatch(args)
        sys.stdout.flush()
        return status
    except SystemExit as stop:  # the help page of a verb
        return _after_exit(stop)
    except KeyboardInterrupt:
        log.fail("interrupted")
        return 130
    except BrokenPipeError:  # `openbook … | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _report(error)


def _after_exit(stop: SystemExit) -> int:
    if isinstance(stop.code, str):
        log.fail(stop.code)
        return 1
    return stop.code or 0


def _report(error: Exception) -> int:
    if os.environ.get("OPENBOOK_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OpenbookError):
        log.fail(str(error))
        return error.exit_code
    if isinstance(error, OSError):
        log.fail(f"{error.strerror or error}" + (f": '{error.filename}'" if error.filename else ""))
    elif isinstance(error, MemoryError):
        log.fail("this needs more memory than there is. Use a smaller model, batch or context.")
    else:
        log.fail(f"{type(error).__name__}: {error} (a defect of openbook: OPENBOOK_DEBUG=1 shows where)")
    return 1


def _dispatch(args: list[str]) -> int:
    if not args:
        print(help_page(), file=sys.stderr)
        return UsageError.exit_code
    if args[0] in ("-h", "--help"):
        print(help_page())
        return 0
    if args[0] in ("-V", "--version", "version"):
        print(f"openbook {__version__}")
        return 0
    if args[0] == "help":
        args = [*args[1:], "--help"]
        return _dispatch(args)
    name, rest = _find(args)
    status: int = importlib.import_module(VERBS[name].module).main(rest, f"openbook {name}")
    return status


def _find(args: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that `args` begins with, one word or two, and the words after it."""
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in VERBS:
            return name, list(args[words:])
    family = [v for v in VERBS if v.startswith(f"{args[0]} ")]
    if family and len(args) > 1 and args[1] in ("-h", "--help"):
        print(_table({name: VERBS[name] for name in family}))
        raise SystemExit(0)
    if family:
        given = f", not '{args[1]}'" if len(args) > 1 else ""
        raise UsageError(f"`openbook {args[0]}` continues with {' or '.join(v.split()[1] for v in family)}{given}.")
    if args[0].startswith("-"):
        raise UsageError(f"Unknown option '{args[0]}': options come after the verb. See: openbook --help")
    raise UsageError(f"Unknown verb '{args[0]}'.{nearest(args[0], VERBS)} See: openbook --help")


def help_page() -> str:
    """All verbs by group."""
    groups: dict[str, dict[str, Verb]] = {}
    for name, verb in VERBS.items():
        groups.setdefault(verb.group, {})[name] = verb
    pages = "\n\n".join(f"{group}\n{_table(verbs)}" for group, verbs in groups.items())
    return (
        "openbook: a whole language-model stack, open at every layer\n\n"
        "usage: openbook VERB [options]      openbook VERB --help      openbook --version\n\n"
        f"{pages}\n\n"
        "Exit status: 0 done, 1 it failed (the message says why), 2 wrong usage, 130 interrupted.\n"
        "OPENBOOK_DEBUG=1 shows the traceback of an error, NO_COLOR=1 turns colour off."
    )


def _table(verbs: Mapping[str, Verb]) -> str:
    wide = max(len(f"{name} {verb.operands}") for name, verb in VERBS.items())
    return "\n".join(f"  {f'{name} {verb.operands}':<{wide}}  {verb.help}" for name, verb in verbs.items())
