"""`openbook bench NAME`: run one of the measurements under `bench/`, each a script that writes JSON and prints a table.

The scripts belong to the source tree, not to the installed package: they need the libraries that we are compared with.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook import log, runtime
from openbook.errors import OpenbookError, UsageError, nearest
from openbook.options import Positional, parse


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a measurement by name, or `all` of them. Without a name: list them. Words after `--` go to it."""

    name: Positional[str] = ""
    """Which one."""
    out: Path = Path("runs/bench")
    """Folder for the JSON files."""
    threads: int | None = None
    """Threads to compute with. Default: the physical cores."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    ours, theirs = _parted(list(args))
    config = parse(Config, ours, prog=prog)
    known = measurements()
    if not config.name:
        print("\n".join(f"{name:<12} {_about(path)}" for name, path in known.items()))
        return 0
    if config.name != "all" and config.name not in known:
        raise UsageError(f"There is no measurement '{config.name}'.{nearest(config.name, known)}")
    names = list(known) if config.name == "all" else [config.name]
    statuses = [_run(name, known[name], config, theirs) for name in names]
    return next((status for status in statuses if status), 0)


def measurements() -> dict[str, Path]:
    """Name → script, from the source tree this package runs from, or the current folder."""
    for root in (Path(__file__).parents[3], Path.cwd()):
        scripts = {path.stem: path for path in sorted((root / "bench").glob("*.py")) if not path.stem.startswith("_")}
        if scripts and (root / "pyproject.toml").exists():
            return scripts
    raise OpenbookError("The measurements are in the folder `bench` of openbook's source tree: run this there.")


def _parted(args: list[str]) -> tuple[list[str], list[str]]:
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _about(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def _run(name: str, path: Path, config: Config, more: Sequence[str]) -> int:
    """Run one script in a process of its own; its status, made one of ours."""
    threads = config.threads or runtime.default_threads()
    log.note(f"bench {name}: {threads} threads, JSON under {config.out}")
    command = [sys.executable, str(path), "--out", str(config.out), *more]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False)
    if done.returncode:
        log.fail(f"bench {name} ended with status {done.returncode}")
    return 130 if done.returncode in (-2, 130) else min(done.returncode, 1) if done.returncode >= 0 else 1
