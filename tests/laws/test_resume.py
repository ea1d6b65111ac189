"""Law 5, second half: killed and resumed == uninterrupted, bit for bit on one device.

The runs are real processes, killed with SIGKILL at random moments while they save after every step. What is compared:
every weight, every optimiser tensor, the random states, the guard's memory, and every line of the journal.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openbook.train.checkpoint import MOMENTS, RECORD, WEIGHTS
from openbook.train.loop import advance, fit, look
from openbook.train.metrics import read_journal
from openbook.train.optim import Optimizer
from openbook.train.run import resume, save
from tests.train.tiny import tiny_run

PROGRAM = """
import json, sys, torch
from pathlib import Path
from tests.train.tiny import tiny_run
from openbook.train.loop import fit
from openbook.train.run import resume
torch.set_num_threads(1)
folder, values = Path(sys.argv[1]), json.loads(sys.argv[2])
run = tiny_run(folder, every=0.0, **values)
resume(run)
fit(run)
"""

CASES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw"},
    "muon, dropout, accumulation": {"optimizer": "muon", "dropout": 0.2, "micro_rows": 3},
    "experts, growing batch": {
        "experts": 4,
        "rows": [[0, 4], [7, 9]],
        "micro_rows": 4,
        "moe": {"capacity": 1.0, "z_loss": 0.01, "jitter": 0.01},
        "routing": {"correction": True, "score": "sigmoid"},
        "plan": {"correction": 0.01},
    },
}
STEPS = 60


def state(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    """All that the end of a run left behind; times are no part of the law."""
    last = max((folder / "checkpoints").glob("step-*"))
    tensors = {**load_file(last / WEIGHTS), **load_file(last / MOMENTS)}
    record = json.loads((last / RECORD).read_text())["run"]
    lines = read_journal(folder / "metrics.jsonl")
    for entry in (record, *lines):
        entry.pop("seconds", None)
        entry.pop("took", None)
        entry.pop("journal", None)
    return tensors, record, lines


def same(one: Path, other: Path) -> bool:
    (tensors, record, lines), (others, other_record, other_lines) = state(one), state(other)
    equal = tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors)
    return equal and record == other_record and lines == other_lines


def start(folder: Path, values: Mapping[str, Any], project: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps({"steps": STEPS, **values})]
    return subprocess.Popen(command, cwd=project)


def lines_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_killed_is_uninterrupted(values: dict[str, Any], tmp_path: Path, project: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole, values, project).wait(timeout=120) == 0
    dice = random.Random(str(values))
    kills = 0
    for _ in range(20):
        process = start(broken, values, project)
        goal = lines_of(broken) + dice.randint(3, 25)
        while process.poll() is None and (kills == 2 or lines_of(broken) < goal):
            time.sleep(0.001)
        if process.poll() is None:
            time.sleep(dice.random() * 0.03)  # anywhere: in a step, in a save, in a rename
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            continue
        assert process.returncode == 0
        break
    assert kills == 2
    assert same(whole, broken)


def halves(folder: Path, *, forget: str = "", **values: Any) -> Path:
    """Seven steps, then a new process's worth of objects that resumes; `forget` seeds a fault."""
    first = tiny_run(folder, **values)
    resume(first)
    for _ in range(7):
        first.tell({**advance(first)})
        if first.progress.step % 5 == 0:
            look(first)
    save(first, 0)
    second = tiny_run(folder, **values)
    fresh = Optimizer(second.model, second.optimizer.settings)
    assert resume(second)
    if forget == "optimiser":
        second.optimizer = fresh
    if forget == "rows":
        second.progress.row = 0
    if forget == "random":
        second.plan = second.plan.__class__(**{**vars(second.plan), "seed": 4})
    fit(second)
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("micro_rows", [0, 3])
@pytest.mark.parametrize("experts", [0, 4])
def test_resumed_is_uninterrupted(
    optimizer: str, dropout: float, micro_rows: int, experts: int, tmp_path: Path
) -> None:
    values = {"optimizer": optimizer, "dropout": dropout, "micro_rows": micro_rows, "experts": experts}
    whole = tiny_run(tmp_path / "whole", **values)  # type: ignore[arg-type]
    resume(whole)
    fit(whole)
    assert same(tmp_path / "whole", halves(tmp_path / "halves", **values))


@pytest.mark.parametrize("forget", ["optimiser", "rows", "random"])
def test_a_forgotten_part_breaks_the_law(forget: str, tmp_path: Path) -> None:
    fit(tiny_run(tmp_path / "whole", dropout=0.3))
    assert not same(tmp_path / "whole", halves(tmp_path / "halves", forget=forget, dropout=0.3))


def test_a_measurement_in_between_changes_nothing(tmp_path: Path) -> None:
    """Held-out text and samples, however often and however random, leave training as it is."""
    plain = tiny_run(tmp_path / "plain", dropout=0.3, plan={"heldout_every": 0})
    looking = tiny_run(tmp_path / "looking", dropout=0.3, plan={"heldout_every": 2})
    looking.sample = lambda model: str(torch.rand(3) + next(model.parameters()).sum())
    fit(plain)
    fit(looking)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, looking.model.get_parameter(name))
