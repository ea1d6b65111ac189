"""One place for what the program says to the person: short lines on stderr, so that stdout stays a result.

`note` informs, `caution` warns, `fail` reports an error; each line is written at once. A `once` key keeps a message
from being repeated. `status` is one line that is written over, on terminals only. `quiet()` silences notes and status,
never cautions nor errors. Colour is for terminals only and obeys NO_COLOR.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO

from openbook.errors import OpenbookWarning

_STYLES = {"note": "2", "warning": "33", "error": "31"}
PIECE = 1024  # characters, and so at most the bytes that a pipe that can be written to has room for
_CLEAR = "\r\x1b[2K"
_lock = threading.Lock()
_said: set[str] = set()
_quiet = 0
_status = False  # whether a status line stands on the terminal


def colour_wanted(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that wants colour (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def note(text: str, *, once: str | None = None) -> None:
    """Say something useful. With `once`, only the first message under that key is shown."""
    if not _quiet:
        _say("", text, "note", once)


def caution(text: str, *, once: str | None = None) -> None:
    """Say that something may not be what was meant."""
    _say("warning: ", text, "warning", once)


def fail(text: str) -> None:
    """Say what went wrong."""
    _say("error: ", text, "error", None)


def status(text: str) -> None:
    """Show `text` in place of the previous status line, on terminals only; an empty text removes it."""
    global _status
    if _quiet or not sys.stderr.isatty():
        return
    with _lock, contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{_CLEAR}{text}")
        sys.stderr.flush()
        _status = bool(text)


def aside(text: str) -> None:
    """A piece of what is said beside the result, as it comes: the reasoning of a model."""
    if _quiet:
        return
    with _lock, contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if colour_wanted(sys.stderr) else text)
        sys.stderr.flush()


def _say(label: str, text: str, kind: str, once: str | None) -> None:
    global _status
    if once is not None:
        with _lock:
            if once in _said:
                return
            _said.add(once)
    with _lock, contextlib.suppress(OSError, ValueError):  # a closed stderr is no reason to stop the work
        if label and colour_wanted(sys.stderr):
            label = f"\x1b[{_STYLES[kind]}m{label}\x1b[0m"
        write(sys.stderr, f"{_CLEAR if _status else ''}{label}{text}\n", patience=1.0)
        _status = False


def write(stream: TextIO, text: str, patience: float = 0.0) -> None:
    """Writes at once. What a full pipe has no room for after `patience` seconds is lost rather than waited for.

    Whoever should read it may have stopped, and that is no reason to stop the work. OSError: nobody can read it.
    """
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):  # no file, or a system without `poll`
        stream.write(text)
        stream.flush()
        return
    for start in range(0, len(text), PIECE):
        if not pipe.poll(patience * 1000):
            return
        stream.write(text[start : start + PIECE])
        stream.flush()


@contextlib.contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Hold back notes inside the block."""
    global _quiet
    _quiet += on
    try:
        yield
    finally:
        _quiet -= on


def show_warnings_plainly() -> None:
    """From now on a Python warning is one clean line: ours without its file and line, others with their kind."""
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, OpenbookWarning):
        caution(" ".join(str(message).split()), once=f"warning {message}")
    elif file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
    else:
        caution(f"{category.__name__}: {' '.join(str(message).split())}", once=f"warning {message}")
