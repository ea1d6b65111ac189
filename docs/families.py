"""Writes docs/families.md: every family, the lines of its file, how far it is from its reference, what is proven of it.

python docs/families.py        (measures; about a minute)

The differences are measured on the cases that the laws run on: the largest |ours - theirs| over real tokens in fp32, as
a share of the largest value (at least 1), the worst of the family's cases. A test holds the rest of the page to the
code.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
FILES = ROOT / "src" / "openbook" / "models" / "families"

HEAD = """# Families

Written by `docs/families.py`; do not edit. One row for each `model_type`: how many lines say it, how far its logits are
from those of its reference (transformers, a small model with weights that are no defaults, over real tokens in fp32:
the worst of its cases, as a share of the largest value; the law's bound is 1e-5), and what the laws hold it to. *Loads*
and *saves*: the published folder, both ways. *Trains*: every gradient is the reference's, packed rows equal rows alone.
*Serves*: what a request gets from the engine is, bit for bit, what it gets alone; *embeds*: its vectors are the
reference's, and in any company what they are alone.

| `model_type` | lines | difference | cases | loads | saves | trains | serves | proven by |
|---|---:|---:|---:|---|---|---|---|---|
"""

TAIL = """
## Layers without a published folder

These are parts of a spec (`model_type: openbook`); each is held to a reference of its own.

| part | held to | proven by |
|---|---|---|
"""

# A model type that the reference library does not have, and the one whose layout it is published in.
SAME_LAYOUT = {"kimi_k2": "deepseek_v3"}
PARTS = (
    ("Elman network, LSTM, GRU, both ways or apart", "`torch.nn.RNN`, `LSTM`, `GRU`", "tests/nn/test_recurrent.py"),
    ("attention of Bahdanau and of Luong", "the papers' formulas", "tests/nn/test_recurrent.py"),
    ("S4D", "the kernel by explicit powers; convolution and recurrence", "tests/laws/test_states.py"),
    ("gated delta rule", "the recurrence, one token after another", "tests/laws/test_states.py"),
    ("the Transformer of 2017", "`torch.nn.Transformer`", "tests/laws/test_transformer.py"),
)


def page(differences: dict[str, float]) -> str:
    """The whole page, from the worst difference of each family."""
    lines = [f"| {what} | {held} | `pytest {file}` |\n" for what, held, file in PARTS]
    counts = [count_lines(name) for name in types()]
    summary = f"\n{len(counts)} families; the median file has {statistics.median(counts):g} lines.\n"
    return HEAD + "".join(f"{row}\n" for row in rows(differences)) + summary + TAIL + "".join(lines)


def types() -> list[str]:
    """All model types but the last resort."""
    from openbook.models.registry import known

    return [name for name in known() if name != "openbook"]


def count_lines(model_type: str) -> int:
    """Of a family's file."""
    return len((FILES / f"{model_type.replace('-', '_')}.py").read_text(encoding="utf-8").splitlines())


def cases_by_type() -> dict[str, list[Any]]:
    """The cases of the laws, by the `model_type` of their reference."""
    sys.path.insert(0, str(ROOT))
    import transformers
    from tests import families

    found: dict[str, list[Any]] = {}
    for case in families.ALL:
        found.setdefault(getattr(transformers, case.config).model_type, []).append(case)
    return found | {name: found[other] for name, other in SAME_LAYOUT.items()}


def rows(differences: dict[str, float]) -> Iterator[str]:
    """One row for each family."""
    cases = cases_by_type()
    from tests.generate.test_encode import READERS
    from tests.laws import served

    for name in types():
        held = cases.get(name, [])
        written, read = (
            all(case.name in known for case in held) for known in (served.CASES, {c.name for c in READERS})
        )
        serves, yes = "yes" if held and written else "embeds" if held and read else "–", "yes" if held else "–"
        far = f"{differences[name]:.0e}" if name in differences else "–"
        names = [case.name for case in held] or [name]
        which = " or ".join(one for one in names if not any(other != one and other in one for other in names))
        where = f'-k "{which}"' if name not in SAME_LAYOUT else f"tests/models -k {name.partition('_')[0]}"
        proof = f"`pytest tests/laws {where}`"
        yield f"| `{name}` | {count_lines(name)} | {far} | {len(held)} | {yes} | {yes} | {yes} | {serves} | {proof} |"


def renamed(folder: Path, model_type: str) -> Path:
    """The folder, under this model type."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_type": model_type}))
    return folder


def measure() -> dict[str, float]:
    """The worst difference of each family's cases."""
    import torch
    from tests.laws.test_parity import outputs

    from openbook.models.load import load

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, cases in cases_by_type().items():
            worst = 0.0
            for case in cases:
                for ours, theirs in outputs(case, load(renamed(case.folder(Path(root)), name))):
                    worst = max(worst, float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max())))
            found[name] = worst
            print(f"{name:<24} {worst:.1e}", flush=True)
    return found


if __name__ == "__main__":
    cases_by_type()  # which makes `tests` importable
    PAGE.write_text(page(measure()), encoding="utf-8")
    print(PAGE)
