"""Compile a native operator at its first use, and keep it.

The library lies in the user's cache folder under a name that holds the hash of everything that decides its content
(sources, flags, compiler, OpenMP runtime), is written beside and renamed, so that processes may do this at the same
time. The instruction sets are named by the caller, never guessed by the compiler: a folder may serve many machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from openbook import log
from openbook.hardware import find_compiler
from openbook.runtime import cache_folder

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-w", "-Wl,--as-needed")


def wanted() -> bool:
    """Whether native operators may be used: not with OPENBOOK_NATIVE=0."""
    return os.environ.get("OPENBOOK_NATIVE", "1") != "0"


def load(name: str, sources: Sequence[str], choices: Sequence[Sequence[str]]) -> ctypes.CDLL | None:
    """The library made of `sources` (files of this folder; those ending in .cpp are compiled), or None, said once.

    `choices` are flags to try in turn: an older compiler may not know the first ones.
    """
    compiler = find_compiler()[0]
    if compiler is None:
        log.note("There is no C++ compiler on the PATH: everything works, uncompiled and slower.", once="uncompiled")
        return None
    why = "the compiler knows none of the flags tried"
    for flags in choices:
        try:
            return _load(name, sources, shutil.which(compiler) or compiler, [*FLAGS, *flags])
        except subprocess.CalledProcessError as error:
            lines = str(error.stderr).strip().splitlines() or [f"exit status {error.returncode}"]
            why = next((line for line in lines if "error" in line), lines[0])
        except (OSError, subprocess.TimeoutExpired) as error:
            why = " ".join(str(error).split())
    _say_without(name, f"compiling it failed ({why[:200]})")
    return None


def tried(library: ctypes.CDLL, function: str) -> bool:
    """Whether `function` of a library answers 0, tried once in a process of its own: it may crash there.

    The answer is kept beside the library.
    """
    path = Path(library._name)
    kept = path.with_suffix(f".{function}")
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8") == "fine"
    runtime = _openmp_runtime()
    first = f"ctypes.CDLL({runtime!r}, ctypes.RTLD_GLOBAL);" if runtime else ""
    program = f"import ctypes,sys;{first}sys.exit(ctypes.CDLL({str(path)!r}).{function}())"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        fine = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
    with contextlib.suppress(OSError):
        kept.write_text("fine" if fine else "no", encoding="utf-8")
    return fine


def _say_without(name: str, why: str) -> None:
    log.note(f"The native {name} is not used, and PyTorch's own does the work: {why}.", once=f"native {name}")


def _load(name: str, sources: Sequence[str], compiler: str, flags: Sequence[str]) -> ctypes.CDLL:
    """Raises OSError or a subprocess error if it cannot be made or loaded."""
    folder = Path(__file__).parent
    runtime = _openmp_runtime()
    digest = hashlib.sha256(repr((sources, flags, _identity(compiler), runtime)).encode())
    for source in sources:
        digest.update((folder / source).read_bytes())
    kept = cache_folder() / "native" / f"{name}-{digest.hexdigest()[:24]}.so"
    if kept.exists():
        with contextlib.suppress(OSError):  # damaged: made again below
            return ctypes.CDLL(str(kept))
    code = [str(folder / source) for source in sources if source.endswith(".cpp")]
    command = [compiler, *flags, *code, *([runtime] if runtime else []), "-o"]
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=kept.parent))
    except OSError:  # a cache that cannot be written: for this process only
        place = Path(tempfile.mkdtemp(prefix=f"openbook-{name}-"))
    try:
        made = place / "library.so"
        subprocess.run([*command, str(made)], check=True, capture_output=True, text=True, timeout=300)
        library = ctypes.CDLL(str(made))  # only what loads is kept
        if place.parent == kept.parent:
            os.replace(made, kept)
            return ctypes.CDLL(str(kept))  # the same library, under the name it keeps
        return library
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _identity(compiler: str) -> tuple[str, int, int]:
    real = Path(compiler).resolve()
    about = real.stat()
    return str(real), about.st_size, about.st_mtime_ns


@functools.cache
def _openmp_runtime() -> str | None:
    """The OpenMP library that this process already runs (torch's): a second one would fight with it over the cores."""
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"/\S.*/lib(?:gomp|iomp5|omp)\b[^/\n]*\.so[^/\n]*$", maps, re.MULTILINE)
        return found[0] if found and Path(found[0]).exists() else None
    return None
