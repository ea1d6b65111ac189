"""`python -m experiments NAME [--quick] [--seed N] [--out DIR]`: run one experiment, or `all`; without a name, list.

A run writes NAME.json and NAME.png and says whether what was expected came out; it fails (status 1) if not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.lab import RESULTS, known, load, page, report


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--quick", action="store_true", help="smaller, in seconds: what the tests run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--page", action="store_true", help="write README.md from the results that are kept")
    options = parser.parse_args()
    if options.page:
        (RESULTS.parent / "README.md").write_text(page(), encoding="utf-8")
        return 0
    if not options.name:
        for name in known():
            print(f"{name:<16} {(load(name).__doc__ or '').splitlines()[0]}")
        return 0
    if options.name != "all" and options.name not in known():
        print(f"There is no experiment '{options.name}'. There are: {', '.join(known())}.", file=sys.stderr)
        return 2
    names = known() if options.name == "all" else [options.name]
    return max(report(name, options.quick, options.seed, options.out) for name in names)


if __name__ == "__main__":
    sys.exit(main())
