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
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

Work = Callable[[], float]  # does one round and returns how much was done, in the measurement's unit
Results = dict[str, dict[str, Any]]  # contender → what is known of it, with `rates`, `loads`, `median` and `best`


@dataclass(frozen=True)
class Round:
    """How much was done in how many seconds; what else a contender has to say of it is kept."""

    amount: float
    seconds: float
    more: Mapping[str, float] = field(default_factory=dict)


Case = Callable[[str], Round]  # does one round of a named case


@dataclass(frozen=True)
class Contender:
    """How a contender is started: arguments of this same script, another Python if it lives in one, its environment."""

    arguments: Sequence[str]
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


def arguments(about: str, rounds: int = 7, **defaults: Any) -> argparse.Namespace:
    """The command line of a measurement: --out, --rounds, and its own defaults as options."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ in a contender


def serve(setup: Callable[[str], tuple[Work, dict[str, Any]]], which: str) -> None:
    """The life of a contender with one case, whose rounds are timed here."""

    def timed(which: str) -> tuple[Case, dict[str, Any]]:
        work, about = setup(which)

        def case(_: str) -> Round:
            start = time.perf_counter()
            amount = work()
            return Round(amount, time.perf_counter() - start)

        return case, about

    serve_cases(timed, which)


def serve_cases(setup: Callable[[str], tuple[Case, dict[str, Any]]], which: str) -> None:
    """The life of a contender: set up, say so, then one round of the case that a line on standard input names.

    What libraries print goes to standard error: standard output belongs to the harness.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    began = time.perf_counter()
    case, about = setup(which)
    say({"ready": round(time.perf_counter() - began, 2), **about})
    for line in sys.stdin:
        done = case(line.strip())
        say({"seconds": done.seconds, "amount": done.amount, "more": done.more})


# ------------------------------------------------------------------------------------------------ around them


class _Running:
    """A contender's process; what it prints is shown only if it dies."""

    def __init__(self, contender: Contender) -> None:
        self.log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (until `end`)
        self.process = subprocess.Popen(
            [contender.python, sys.argv[0], *contender.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            bufsize=1,
            env={**os.environ, **contender.environment},
        )

    def hear(self) -> dict[str, Any]:
        """Its next message. Raises RuntimeError with its last words where there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            words = [text for text in self.log.read().splitlines() if text.strip()]
            raise RuntimeError(f"it ended with status {status}: " + "\n      ".join(words[-6:]))
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, case: str) -> dict[str, Any]:
        """One round of a case."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(case + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `hear` says why
        return self.hear()

    def end(self) -> None:
        """No more of it."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def compare(contenders: Mapping[str, Sequence[str]], rounds: int) -> Results:
    """Run `contenders` (name → arguments of this same script) in turn; rates, medians and loads of each."""
    started = {name: Contender(more) for name, more in contenders.items()}
    results = compare_cases(started, [""], rounds)[""]
    if lost := [name for name in contenders if name not in results]:
        raise SystemExit(f"Without {', '.join(lost)} there is nothing to compare.")
    return results


def compare_cases(contenders: Mapping[str, Contender], cases: Sequence[str], rounds: int) -> dict[str, Results]:
    """Every contender in every case, in turn, round after round. One that fails is left out, with a line saying why."""
    running: dict[str, _Running] = {}
    results: dict[str, Results] = {case: {} for case in cases}
    try:
        for name, contender in contenders.items():
            running[name] = _Running(contender)
            try:
                about = running[name].hear()
            except RuntimeError as error:
                _lose(name, error, running, results)
                continue
            print(f"  {name}: ready after {about['ready']} s", file=sys.stderr)
            for case in cases:
                results[case][name] = {**about, "rates": [], "loads": []}
        for case in cases * rounds:
            for name in list(running):
                try:
                    answer = running[name].ask(case)
                except RuntimeError as error:
                    _lose(name, error, running, results)
                    continue
                results[case][name]["rates"].append(round(answer["amount"] / answer["seconds"], 3))
                results[case][name]["loads"].append(round(os.getloadavg()[0], 2))
                if answer["more"]:
                    results[case][name].setdefault("more", []).append(answer["more"])
    finally:
        for child in running.values():
            child.end()
    for one in results.values():
        for result in one.values():
            result["median"] = statistics.median(result["rates"])
            result["best"] = max(result["rates"])
    return results


def _lose(name: str, error: RuntimeError, running: dict[str, _Running], results: dict[str, Results]) -> None:
    print(f"  {name}: left out, {error}", file=sys.stderr)
    running.pop(name).end()
    for one in results.values():
        one.pop(name, None)


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


def best_peer(results: Results) -> str | None:
    """The fastest contender that is not ours."""
    peers = [name for name in results if not name.startswith("ours")]
    return max(peers, key=lambda name: results[name]["median"], default=None)


def report(name: str, title: str, unit: str, cases: dict[str, Results], out: Path, peer: str, **more: Any) -> None:
    """Print a table of medians and ratios to `peer` ("best": the fastest one), and keep everything as OUT/NAME.json."""
    print(f"\n{title}: {unit}, median of interleaved rounds (ratio to {'the best peer' if peer == 'best' else peer})")
    for case, results in cases.items():
        against = best_peer(results) if peer == "best" else peer
        base = results[against]["median"] if against else None
        cells = [
            f"{who} {r['median']:,.1f}" + (f" ({r['median'] / base:.2f}×)" if base else "")
            for who, r in results.items()
        ]
        print(f"  {case:<22} " + "   ".join(cells))
    out.mkdir(parents=True, exist_ok=True)
    kept = {"title": title, "unit": unit, "peer": peer, "machine": machine(), **more, "cases": cases}
    (out / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"  kept in {out / f'{name}.json'}; load now {os.getloadavg()[0]:.2f}")
