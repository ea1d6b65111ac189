"""`openbook data plan`: how long a corpus of any size takes on which machines, by arithmetic and by playing it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from openbook.data.corpus.scale import Machines, Rates
from openbook.errors import UsageError
from openbook.options import parse

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Plan a corpus that is not there yet: time, space and what bounds each stage; then play the handing out of its
    blocks on machines that are unlike each other and that fail."""

    size: str = "10TB"
    """Text to prepare: 340MB, 10TB."""
    block: str = "256MB"
    """Text of one block, the work that is handed out."""
    like: Path | None = None
    """A corpus that was made here: its speeds and its text stand for the new one's. None: `rates` as they are."""
    signature: int = 640
    """Bytes that are kept of a document to compare it."""
    plays: int = 5
    """How often each stage is played."""
    machines: Machines = field(default_factory=Machines)
    rates: Rates = field(default_factory=Rates)
    json: bool = False
    """Print one JSON object."""


def main(args: Sequence[str], prog: str) -> int:
    """The verb."""
    config = parse(Config, args, prog=prog)
    from openbook.data.corpus.report import NAME
    from openbook.data.corpus.scale import plan, simulate
    from openbook.files import read_json

    rates = config.rates if config.like is None else Rates.of(read_json(config.like / NAME))
    size, block = amount_of(config.size), amount_of(config.block)
    made = plan(size, rates, config.machines, block, config.signature)
    sizes = {"clean": (size, rates.clean), "write": (size * rates.kept, rates.write)}
    sizes["tokenise"] = (made["left"], rates.tokenise)
    for name, (part, rate) in sizes.items():
        moved = made["stages"][name]["moved"]
        played = [simulate(part, rate, config.machines, block, seed, moved) for seed in range(config.plays)]
        if played:
            made["stages"][name]["played"] = {
                "seconds": median(one.seconds for one in played), "slowest": max(one.seconds for one in played),
                "busy": median(one.busy for one in played), "lost": median(one.lost for one in played),
                "again": median(one.again for one in played),
            }  # fmt: skip
    print(json.dumps(made, indent=2) if config.json else _shown(made))
    return 0


def amount_of(text: str) -> float:
    """Bytes that a text such as `10TB` or `256 MB` means."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgtp]?)b?\s*", text.lower())
    if found is None or found[1].count(".") > 1 or found[1] == ".":
        raise UsageError(f"A size is a number and a unit: got {text!r}. Write 340MB, 2.5GB or 10TB.")
    return float(found[1]) * UNITS[found[2]]


def _shown(plan: dict[str, Any]) -> str:
    from openbook.data.corpus.page import amount, duration

    head = f"{'stage':<10} {'core hours':>11} {'takes':>10} {'bound by':<12} {'played':>10} {'slowest':>10}"
    lines = [
        f"{amount(plan['bytes'])} in {plan['blocks']:,} blocks: {plan['documents']:.3g} documents, "
        f"{plan['tokens']:.3g} tokens",
        "space: " + ", ".join(f"{name} {amount(part)}" for name, part in plan["space"].items()),
        "",
        f"{head} {'busy':>6} {'again':>7}",
    ]
    for name, stage in plan["stages"].items():
        line = f"{name:<10} {stage['core_hours']:>11,.1f} {duration(stage['seconds']):>10} {stage['bound']:<12}"
        if played := stage.get("played"):
            line += f" {duration(played['seconds']):>10} {duration(played['slowest']):>10}"
            line += f" {played['busy']:>6.0%} {played['again']:>7,.0f}"
        lines.append(line)
    return "\n".join([*lines, "", f"in all {duration(plan['seconds'])}"])
