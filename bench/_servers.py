"""Servers that are compared: how each is started, and what a request to it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from _contenders import KINDS, environment_of, python_of

NEVER = -100  # a bias with which a token does not come


@dataclass(frozen=True)
class Kind:
    """A server: the contender whose model and Python it uses, its command, and what its requests say of their own."""

    like: str
    packages: tuple[str, ...]
    command: Callable[[Path, int, Limits], list[str]]
    says: dict[str, Any]
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Limits:
    """What all are given."""

    rows: int = 64
    context: int = 2048
    threads: int = 2
    waiting: int = 16
    waiting_tokens: int = 4096


def _ours(form: str) -> Callable[[Path, int, Limits], list[str]]:
    def command(path: Path, port: int, limits: Limits) -> list[str]:
        words = ["-m", "openbook", "serve", f"bench={path}", "--port", str(port), "--memory", "2GiB"]
        words += ["--rows", str(limits.rows), "--waiting", str(limits.waiting)]
        words += ["--waiting-tokens", str(limits.waiting_tokens)]
        return words + (["--quantize", "int8"] if form == "int8" else [])

    return command


def _vllm(path: Path, port: int, limits: Limits) -> list[str]:
    return [
        "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--served-model-name", "bench",
        "--port", str(port), "--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(limits.context),
        "--max-num-seqs", str(limits.rows), "--no-enable-log-requests", "--disable-uvicorn-access-log",
    ]  # fmt: skip


def _llama_cpp(path: Path, port: int, limits: Limits) -> list[str]:
    return [
        "-m", "llama_cpp.server", "--model", str(path), "--model_alias", "bench", "--port", str(port),
        "--n_ctx", str(limits.context), "--n_threads", str(limits.threads), "--n_threads_batch", str(limits.threads),
    ]  # fmt: skip


VLLM = (("VLLM_CPU_KVCACHE_SPACE", "2"), ("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"), ("VLLM_NO_USAGE_STATS", "1"))
SERVERS: dict[str, Kind] = {
    "ours-int8": Kind("ours-int8", ("openbook.serve",), _ours("int8"), {"ignore_eos": True}),
    "ours-bf16": Kind("ours-bf16", ("openbook.serve",), _ours("bf16"), {"ignore_eos": True}),
    "vllm": Kind("vllm", ("vllm",), _vllm, {"ignore_eos": True}, (*VLLM, ("HF_HUB_OFFLINE", "1"))),
    "llama.cpp": Kind("llama.cpp", ("llama_cpp.server",), _llama_cpp, {"logit_bias": {"2": NEVER}}),
}


@contextmanager
def serving(name: str, path: Path, limits: Limits, patience: float = 300.0) -> Iterator[tuple[int, int]]:
    """A server at work: its port and its process. RuntimeError with its last words where it does not come up."""
    kind, port = SERVERS[name], _free_port()
    extra = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{limits.threads - 1}"} if kind.like == "vllm" else {}
    environment = {**os.environ, **environment_of(kind.like, limits.threads), **dict(kind.environment), **extra}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
    command = [python_of(kind.like), *kind.command(path, port, limits)]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _until_up(name, process, port, log, patience)
        yield port, process.pid
    finally:
        for signum, seconds in ((signal.SIGINT, 20), (signal.SIGKILL, 20)):
            if process.poll() is None:
                os.killpg(process.pid, signum)
                with _patience():
                    process.wait(seconds)
        log.close()


@contextmanager
def _patience() -> Iterator[None]:
    try:
        yield
    except subprocess.TimeoutExpired:
        return


def _until_up(name: str, process: subprocess.Popen[bytes], port: int, log: IO[str], patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            words = [line for line in log.read().splitlines() if line.strip()]
            raise RuntimeError(f"{name} ended with status {process.returncode}: " + " | ".join(words[-5:]))
        try:
            body = b'{"model": "bench", "prompt": "abc", "max_tokens": 2}'
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked, timeout=60):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"{name} did not come up within {patience:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(name: str) -> str | None:
    """Why a server cannot be started here; None if it can."""
    python = python_of(SERVERS[name].like)
    tries = "; ".join(f"import {package}" for package in SERVERS[name].packages)
    done = subprocess.run([python, "-c", tries], capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return None if not done.returncode else f"{lines[-1] if lines else 'it cannot be imported'} in {python}"


def models(names: list[str], size: str, root: Path) -> dict[str, Path]:
    """The servers that can be started, each with its model; a line for each that cannot."""
    from _folders import folder

    found: dict[str, Path] = {}
    for name in names:
        if name not in SERVERS:
            raise SystemExit(f"There is no server '{name}': " + ", ".join(SERVERS))
        why = missing(name)
        if why is None:
            like = SERVERS[name].like
            form = "gguf-words" if KINDS[like].format == "gguf" else KINDS[like].format
            try:
                found[name] = folder(root, size, form, python_of(like))
            except RuntimeError as error:
                why = str(error)
        if why is not None:
            print(f"  {name}: left out, {why}", file=sys.stderr)
    return found
