"""What all verbs share: help, unknown words, errors, exit codes, pipes, interrupts, completion."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openbook import cli
from openbook.errors import CheckpointError, UsageError


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openbook", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_help_lists_every_verb_and_is_fast() -> None:
    page = run("--help").stdout
    assert all(verb in page and cli.VERBS[verb].help in page for verb in cli.VERBS)
    assert max(len(line) for line in page.splitlines()) <= 100
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        run("--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_help_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.split(), "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: openbook {verb}" in page
    assert cli.main(["help", *verb.split()]) == 0
    assert capsys.readouterr().out == page


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "usage: openbook VERB"),
        (["pretrian"], 2, "Did you mean 'pretrain'"),
        (["tokenizer"], 2, "continues with train or count"),
        (["tokenizer", "tain"], 2, "not 'tain'"),
        (["--verbose"], 2, "options come after the verb"),
        (["doctor", "--jsn"], 2, "Did you mean --json"),
        (["doctor", "stray"], 2, "stray"),
        (["completion", "tcsh"], 2, "tcsh"),
        (["tokenizer", "train", "--out", "x"], 1, "No text was named"),
    ],
)
def test_wrong_words(words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == status
    said = capsys.readouterr()
    assert says in said.err
    assert not said.out


def test_version() -> None:
    assert run("--version").stdout.startswith("openbook 0.")


# ------------------------------------------------------------------------------------------------ errors


class Broken:
    """A verb whose module raises what it was made with."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def main(self, args: list[str], prog: str) -> int:  # noqa: ARG002
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (CheckpointError("The folder is empty."), 1, "error: The folder is empty.\n"),
        (UsageError("Too many."), 2, "error: Too many.\n"),
        (OSError(28, "No space left on device", "out"), 1, "error: No space left on device: 'out'\n"),
        (MemoryError(), 1, "more memory"),
        (ValueError("odd"), 1, "ValueError: odd (a defect of openbook"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_have_one_line_and_a_code(
    error: BaseException,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OPENBOOK_DEBUG", raising=False)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Broken(error))  # noqa: ARG005
    assert cli.main(["doctor"]) == status
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENBOOK_DEBUG", "1")
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Broken(ValueError("odd")))  # noqa: ARG005
    assert cli.main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m openbook completion fish | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1


def test_an_interrupt_ends_with_130() -> None:
    program = (
        "import sys, time, types, openbook.cli as cli\n"
        "verb = types.SimpleNamespace(main=lambda args, prog: (print('here', flush=True), time.sleep(60)))\n"
        "cli.importlib.import_module = lambda name: verb\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said == "error: interrupted\n"


# ------------------------------------------------------------------------------------------------ completion


def completed(shell: str, script: Path, line: str) -> list[str]:
    """What the shell itself offers for `line`."""
    words = line.split(" ")
    if shell == "fish":
        program = f"source {script}; complete -C '{line}'"
        out = subprocess.run(["fish", "--no-config", "-c", program], capture_output=True, text=True, check=True).stdout
        return [row.split("\t")[0] for row in out.splitlines()]
    program = (
        f"source {script}; COMP_WORDS=({' '.join(repr(w) for w in words)}); COMP_CWORD={len(words) - 1}; "
        '_openbook; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_in_the_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(run("completion", shell).stdout)
    assert "pretrain" in completed(shell, script, "openbook pre")
    assert {"train", "count"} <= set(completed(shell, script, "openbook tokenizer "))
    assert "--vocab" in completed(shell, script, "openbook tokenizer train --vo")
    assert "--no-measure" in completed(shell, script, "openbook doctor --")
    assert "--again" not in completed(shell, script, "openbook chat --")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_its_script(tmp_path: Path) -> None:
    script = tmp_path / "_openbook"
    script.write_text(run("completion", "zsh").stdout)
    program = f"autoload -U compinit && compinit -u -d {tmp_path}/dump; source {script}; echo $_comps[openbook]"
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "_openbook", done.stderr
