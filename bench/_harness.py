"""Contenders side by side: each in a process of its own, one at a time, in turn, round after round.

A contender is set up and warmed up before the first round and waits between its rounds. What is compared is the median
of the rounds; the machine's load stands beside every round. The result is kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], float]  # does one round and returns how much was done, in the measurement's unit


def arguments(about: str, **defaults: Any) -> argparse.Namespace:
    """The command line of a measurement: --out, --rounds, and its own defaults as options."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def serve(setup: Callable[[str], tuple[Work, dict[str, Any]]], which: str) -> None:
    """The life of a contender: set up, say so, then one round for every line on standard input."""
    began = time.perf_counter()
    work, about = setup(which)
    _say({"ready": round(time.perf_counter() - began, 2), **about})
    for _ in sys.stdin:
        start = time.perf_counter()
        amount = work()
        _say({"seconds": time.perf_counter() - start, "amount": amount})


def _say(message: dict[str, Any]) -> None:
    print("@" + json.dumps(message), flush=True)


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("@"):
            found: dict[str, Any] = json.loads(line[1:])
            return found
    raise SystemExit(f"A contender ended with status {process.wait()}.")


def compare(contenders: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Run `contenders` (name → arguments of this same script) in turn; rates, medians and loads of each."""
    processes, results = {}, {}
    script = [sys.executable, sys.argv[0]]
    try:
        for name, more in contenders.items():
            processes[name] = subprocess.Popen(
                [*script, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            results[name] = {**_hear(processes[name]), "rates": [], "loads": []}
            print(f"  {name}: ready after {results[name]['ready']} s", file=sys.stderr)
        for _ in range(rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                answer = _hear(process)
                results[name]["rates"].append(round(answer["amount"] / answer["seconds"], 3))
                results[name]["loads"].append(round(os.getloadavg()[0], 2))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for result in results.values():
        result["median"] = statistics.median(result["rates"])
        result["best"] = max(result["rates"])
    return results


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from importlib.metadata import PackageNotFoundError, version

    from openbook import runtime

    versions = {}
    for package in ("torch", "transformers", "openbook"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": runtime.default_threads(),
        "versions": versions,
        "load": round(os.getloadavg()[0], 2),
    }


def report(name: str, title: str, unit: str, cases: dict[str, dict[str, dict[str, Any]]], out: Path, peer: str) -> None:
    """Print a table of medians and ratios to `peer`, and keep everything as OUT/NAME.json."""
    print(f"\n{title}: {unit}, median of interleaved rounds (ratio to {peer})")
    for case, results in cases.items():
        base = results[peer]["median"]
        cells = [f"{who} {r['median']:,.1f} ({r['median'] / base:.2f}×)" for who, r in results.items()]
        print(f"  {case:<22} " + "   ".join(cells))
    out.mkdir(parents=True, exist_ok=True)
    kept = {"title": title, "unit": unit, "peer": peer, "machine": machine(), "cases": cases}
    (out / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"  kept in {out / f'{name}.json'}; load now {os.getloadavg()[0]:.2f}")
