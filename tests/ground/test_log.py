"""Messages to the person."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from openbook import log
from openbook.errors import OpenbookWarning


def test_notes_once_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    log.note("one")
    log.note("two", once="test-key")
    log.note("two", once="test-key")
    with log.quiet():
        log.note("hidden")
        log.caution("shown")
        with log.quiet(False):
            log.note("hidden too")
    log.note("three")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "one\ntwo\nwarning: shown\nthree\n"


def test_status_lines_are_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log.status("half way")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    log.status("half way")
    log.note("done")
    log.note("next")
    assert capsys.readouterr().err == "\r\x1b[2Khalf way\r\x1b[2Kdone\nnext\n"


@pytest.mark.parametrize(("no_color", "terminal", "colour"), [("", True, True), ("1", True, False), ("", False, False)])
def test_colour(no_color: str, terminal: bool, colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert log.colour_wanted(sys.stderr) is colour


def test_a_warning_is_one_clean_line_said_once() -> None:
    program = (
        "import warnings; from openbook import log; from openbook.errors import OpenbookWarning\n"
        "log.show_warnings_plainly()\n"
        "for _ in range(3): warnings.warn('first\\n  second', OpenbookWarning, stacklevel=1)\n"
        "warnings.warn('other', UserWarning)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: first second\nwarning: UserWarning: other\n"


def test_a_closed_stderr_stops_nothing() -> None:
    program = "import sys; from openbook import log; sys.stderr.close(); log.note('x'); log.fail('y'); print('on')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "on\n"


def test_our_warnings_are_errors_in_tests() -> None:
    with pytest.raises(OpenbookWarning):
        warnings.warn("noticed", OpenbookWarning, stacklevel=1)
