"""What this machine has, without torch: cores, instruction sets, memory, limits of the container, C++ compiler.

Linux and macOS; what a system does not tell is left out, never guessed at with an error.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the kernel calls an instruction set → what people call it; in this order they are shown.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "bf16": "Arm bf16",
    "i8mm": "Arm i8mm",
    "sve": "SVE",
    "sve2": "SVE2",
}
BF16_FEATURES = frozenset({"AMX bf16", "AVX-512 BF16", "Arm bf16"})
INT8_FEATURES = frozenset({"AMX int8", "AVX-512 VNNI", "AVX-VNNI", "Arm i8mm"})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine without torch; bytes are bytes. `cores` is what this process may use: affinity and quota applied."""

    system: str
    processor: str
    logical: int
    physical: int
    cores: float
    features: tuple[str, ...]
    memory: int
    memory_free: int
    memory_limit: int | None
    compiler: str | None
    compile_obstacle: str | None


def machine() -> Machine:
    """What this machine has; takes milliseconds, plus one compiler call the first time."""
    total, free = memory()
    compiler, obstacle = find_compiler()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor_name(),
        logical=os.cpu_count() or 1,
        physical=physical_cores(),
        cores=usable_cores(),
        features=cpu_features(),
        memory=total,
        memory_free=free,
        memory_limit=_cgroup_limit("memory"),
        compiler=compiler,
        compile_obstacle=obstacle,
    )


# ------------------------------------------------------------------------------------------------ cores


def affinity() -> frozenset[int] | None:
    """The logical cores this process may run on, where the system says."""
    return frozenset(os.sched_getaffinity(0)) if sys.platform == "linux" else None


def usable_cores() -> float:
    """Cores' worth of time this process may use: affinity and the container's quota applied."""
    allowed = affinity()
    count = float(len(allowed) if allowed is not None else os.cpu_count() or 1)
    quota = _cgroup_limit("cpu")
    return min(count, quota) if quota else count


@functools.cache
def physical_cores(allowed: frozenset[int] | None = None) -> int:
    """Distinct (package, core) pairs among the logical cores `allowed`."""
    if sys.platform == "darwin":
        return int(_sysctl("hw.physicalcpu") or os.cpu_count() or 1)
    pairs = set()
    for index, block in enumerate(_read("/proc/cpuinfo").strip().split("\n\n")):
        fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", block, re.MULTILINE))
        number = int(fields.get("processor", index))
        if allowed is None or number in allowed:
            pairs.add((fields.get("physical id", "0"), fields.get("core id", f"thread {number}")))
    return len(pairs) or os.cpu_count() or 1


def _cgroup_limit(what: str, root: Path = Path("/sys/fs/cgroup"), listing: Path = Path("/proc/self/cgroup")) -> Any:
    """The tightest control-group limit (versions 1 and 2): cores for `cpu`, bytes for `memory`; None without one."""
    limits: list[float] = []
    for line in _read(listing).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        unified = number == "0" and not controllers
        if not unified and what not in controllers.split(","):
            continue
        base = root if unified else root / what
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if place == base.parent:
                break
            limits += _one_limit(what, place)
    if not limits:
        return None
    return min(limits) if what == "cpu" else int(min(limits))


def _one_limit(what: str, place: Path) -> list[float]:
    if what == "cpu":
        quota, period = ([*_read(place / "cpu.max").split(), "", ""])[:2]
        if not quota:
            quota, period = _read(place / "cpu.cfs_quota_us").strip(), _read(place / "cpu.cfs_period_us").strip()
        return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []
    size = (_read(place / "memory.max") or _read(place / "memory.limit_in_bytes")).strip()
    return [int(size)] if size.isdigit() and int(size) < 2**60 else []  # version 1 says "no limit" as a huge number


# ------------------------------------------------------------------------------------------------ processor, memory


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter here, in people's words (`FEATURES`)."""
    if sys.platform == "darwin":
        names = set(_sysctl("machdep.cpu.features").lower().split()) | set(
            _sysctl("machdep.cpu.leaf7_features").lower().split()
        )
        if platform.machine() == "arm64":
            names |= {"asimd"} | {f for f in ("bf16", "i8mm") if _sysctl(f"hw.optional.arm.FEAT_{f.upper()}") == "1"}
    else:
        line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
        names = set(line[1].split()) if line else set()
    return tuple(shown for name, shown in FEATURES.items() if name in names)


def processor_name() -> str:
    """The processor as the system names it."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    line = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return line[1].strip() if line else platform.machine()


def memory() -> tuple[int, int]:
    """Bytes of memory: all, and free for new use."""
    if sys.platform == "darwin":
        total = int(_sysctl("hw.memsize") or 0)
        pages = dict(re.findall(r"Pages (free|inactive|speculative):\s+(\d+)", _output("vm_stat")))
        return total, sum(int(n) for n in pages.values()) * os.sysconf("SC_PAGE_SIZE")
    sizes = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)}
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", sizes.get("MemFree", 0))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _sysctl(name: str) -> str:
    return _output("sysctl", "-n", name).strip()


# ------------------------------------------------------------------------------------------------ compiler


@functools.cache
def find_compiler() -> tuple[str | None, str | None]:
    """(compiler, obstacle). A compiler that torch would not look for by itself is named to it through CXX."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    how = "xcode-select --install" if sys.platform == "darwin" else "apt install g++ (or your system's equivalent)"
    chosen = os.environ.get("CXX")
    found = next((c for c in ([chosen] if chosen else [usual, "clang++", "g++", "c++"]) if shutil.which(c)), None)
    if found is None:
        where = f"CXX names '{chosen}', which is not on the PATH" if chosen else "There is no C++ compiler on the PATH"
        return None, f"{where}: models run uncompiled, and slower. To change that: {how}."
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        return (
            found,
            f"Python's headers are missing: models run uncompiled, and slower. To change that: apt install {package}.",
        )
    command = [found, "-x", "c++", "-std=c++17", "-fsyntax-only", f"-I{include}", "-"]
    try:
        program = "#include <vector>\n#include <Python.h>\nint main() { return 0; }\n"
        done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (
            found,
            f"The C++ compiler '{found}' does not run ({error}): models run uncompiled, and slower. Try: {how}.",
        )
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        return found, f"The C++ compiler '{found}' fails ({first}): models run uncompiled, and slower. Try: {how}."
    if found != usual:
        os.environ.setdefault("CXX", found)
    return found, None
