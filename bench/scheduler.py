"""Microseconds of scheduling per step (`next` and `commit`) in steady decoding, at 32 and 256 running sequences.

    python bench/scheduler.py [--steps 512] [--rounds 5]

Prints the median of the rounds as JSON: `steady` without drafts, `drafts` with four for each, of which two hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
from time import perf_counter

from openbook.generate.plan import Ask, Group, Shape
from openbook.generate.scheduler import Scheduler

SHAPE = Shape(page=32, groups=(Group(name="full", window=None, nbytes=1), Group(name="near", window=128, nbytes=1)))


def measure(rows: int, steps: int, drafts: int) -> float:
    """Microseconds of a step."""
    scheduler = Scheduler(SHAPE, 1 << 24, rows=rows, tokens=(1 + drafts) * rows + 512)
    for key in range(rows):
        scheduler.add(Ask(key=key, ids=[key] * 100, room=8 * steps, root=b""), 0.0)
    now, spent, counted = 0.0, 0.0, 0
    while counted < steps:
        now += 0.01
        for sequence in scheduler.running:
            sequence.drafts = [2] * drafts if sequence.computed == len(sequence.ids) - 1 else []
        begun = perf_counter()
        plan = scheduler.next(now)
        middle = perf_counter()
        accepted = {}
        for work in plan.works:
            if work.final:
                held = min(2, len(work.sequence.drafts))
                work.sequence.ids += [2] * held + [1]
                if held:
                    accepted[work.sequence] = work.start + 1 + held
        again = perf_counter()
        scheduler.commit(plan, accepted)
        if len(plan.works) == rows and all(work.final and work.count == 1 + drafts for work in plan.works):
            spent += perf_counter() - again + middle - begun
            counted += 1
    return spent / steps * 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for kind, drafts in (("steady", 0), ("drafts", 4)):
        found = {}
        for rows in (32, 256):
            times = [measure(rows, options.steps, drafts) for _ in range(options.rounds)]
            found[str(rows)] = round(statistics.median(times), 1)
        print(json.dumps({kind: found, "unit": "microseconds per step"}))
