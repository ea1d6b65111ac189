"""Law 5, first half: a step does not depend on how its rows were split, packed, or shared among processes.

For objectives that are sums over tokens, without dropout: 8×1 == 1×8 with unequal token counts, packed == unpacked,
2 ranks == 1. Of experts, the router's z-loss is a sum over tokens, and the correction moves by the loads of whole
steps: both know no split. The load-balancing loss, a capacity and experts that choose their tokens are of one
micro-batch: invariant under the order of micro-batches, not under their size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from openbook.data.batch import Batch
from openbook.nn.model import LanguageModel
from openbook.train import experts as experts_module
from openbook.train import step as step_module
from openbook.train.head_loss import IGNORE
from openbook.train.loop import advance, fit
from openbook.train.objectives import Language, Masking, Objective, mask_tokens
from openbook.train.run import Run
from openbook.train.step import gather, pieces
from tests.train.tiny import BLOCK, Text, tiny_model, tiny_run

BOUND = 2e-6  # of the largest gradient; sums in another order differ by rounding only

OBJECTIVES = {
    "plain": Language(),
    "smoothed": Language(label_smoothing=0.1),
    "z-loss": Language(z_loss=1e-2),
}


def gradient(model: LanguageModel, objective: Objective, batches: list[Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()
    gather(model, objective, batches, list(range(len(batches))), seed=0, step=0)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    scale = max(float(value.abs().max()) for value in one.values())
    return one.keys() == other.keys() and all(float((one[n] - other[n]).abs().max()) <= BOUND * scale for n in one)


def split(size: int) -> list[Batch]:
    text = Text()
    return [text.batch(start, size) for start in range(0, 8, size)]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_batch_of_eight_is_eight_of_one(objective: Language, tied: bool, size: int) -> None:
    model = tiny_model(tied=tied, bias=not tied)
    assert len({float((b.targets["language"] != IGNORE).sum()) for b in split(1)}) > 3, "the counts must be unequal"
    assert close(gradient(model, objective, split(8)), gradient(model, objective, split(size)))


def mean_of_means(measure: Callable[..., Any], pieces: int) -> Callable[..., Any]:
    """The classic mistake: each micro-batch divided by its own count, then averaged."""

    def faulty(model: LanguageModel, objective: Language, batch: Batch, counts: dict[str, float]) -> Any:
        del counts
        return measure(model, objective, batch, {name: c * pieces for name, c in objective.counts(batch).items()})

    return faulty


def test_a_mean_of_means_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = tiny_model(), split(8)
    right = gradient(model, Language(), whole)
    monkeypatch.setattr(step_module, "measure", mean_of_means(step_module.measure, 8))
    assert not close(right, gradient(model, Language(), split(1)))


def test_two_full_runs_differ_by_rounding_only() -> None:
    one, eight = tiny_run(steps=6), tiny_run(steps=6, micro_rows=1)
    fit(one)
    fit(eight)
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter, eight.model.get_parameter(name), rtol=2e-3, atol=2e-4)


def pack(rows: list[tuple[Tensor, Tensor, Tensor]], block: int) -> Batch:
    """Rows (ids, segments, targets) without their padding, several to a row of `block`."""
    packed: list[list[tuple[Tensor, Tensor]]] = [[]]
    room = block
    for ids, segments, targets in rows:
        length = int(segments.sum())
        if length > room:
            packed.append([])
            room = block
        packed[-1].append((ids[:length], targets[:length]))
        room -= length
    shape = (len(packed), block)
    batch = {"ids": torch.zeros(shape).long(), "segments": torch.zeros(shape).int()}
    wanted = torch.full(shape, IGNORE)
    for number, texts in enumerate(packed):
        place = 0
        for segment, (ids, targets) in enumerate(texts, start=1):
            end = place + len(ids)
            batch["ids"][number, place:end] = ids
            batch["segments"][number, place:end] = segment
            wanted[number, place:end] = targets
            place = end
    return Batch(targets={"language": wanted}, **batch)


def test_packed_is_unpacked() -> None:
    rows = [Text().row(number) for number in range(8)]
    whole, tight = Text().batch(0, 8), pack(rows, 3 * BLOCK)
    assert len(tight.ids) < 4
    assert tight.segments is not None
    assert int(tight.segments.max()) >= 3
    model = tiny_model()
    assert close(gradient(model, Language(), [whole]), gradient(model, Language(), [tight]))


def test_packing_that_leaks_breaks_the_law() -> None:
    """Seeded fault: packed texts that see their neighbours."""
    tight = pack([Text().row(number) for number in range(8)], 3 * BLOCK)
    assert tight.segments is not None
    leaking = Batch(ids=tight.ids, segments=(tight.segments > 0).int(), targets=tight.targets)
    model = tiny_model()
    assert not close(gradient(model, Language(), [tight]), gradient(model, Language(), [leaking]))


def test_masked_language_does_not_depend_on_the_split() -> None:
    masking = Masking(mask=60, vocab=61)
    whole = [mask_tokens(Text().batch(0, 8), masking, 7, 0)]
    ones = [mask_tokens(Text().batch(row, 1), masking, 7, row) for row in range(8)]
    assert torch.equal(whole[0].ids, torch.cat([batch.ids for batch in ones]))
    model = tiny_model()
    assert close(gradient(model, Language(), whole), gradient(model, Language(), ones))


Z_LOSS: dict[str, Any] = {"balance": 0.0, "z_loss": 0.3}


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_router_s_z_loss_is_a_sum_over_tokens(size: int, score: str) -> None:
    model = tiny_model(experts=4, moe=Z_LOSS, routing={"score": score})
    assert not close(gradient(model, Language(), split(8)), gradient(tiny_model(experts=4), Language(), split(8)))
    assert close(gradient(model, Language(), split(8)), gradient(model, Language(), split(size)))


def test_a_mean_of_the_z_loss_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    model, right = tiny_model(experts=4, moe=Z_LOSS), experts_module.z_loss

    def mean(routers: Any, real: Tensor) -> Tensor:
        return right(routers, real) / real.sum() * 13

    monkeypatch.setattr(experts_module, "z_loss", mean)
    assert not close(gradient(model, Language(), split(8)), gradient(model, Language(), split(1)))


BY_MICRO_BATCH: dict[str, dict[str, Any]] = {
    "balance": {"moe": {"balance": 1.0}},
    "capacity": {"moe": {"balance": 0.0, "capacity": 0.7}},
    "expert choice": {"routing": {"choice": "expert"}},
}


@pytest.mark.parametrize("values", BY_MICRO_BATCH.values(), ids=BY_MICRO_BATCH)
def test_what_is_of_one_micro_batch_knows_no_order(values: dict[str, Any]) -> None:
    model = tiny_model(experts=4, **values)
    there, back = split(2), list(reversed(split(2)))
    assert close(gradient(model, Language(), there), gradient(model, Language(), back))
    assert not close(gradient(model, Language(), there), gradient(model, Language(), split(8)))


@pytest.mark.parametrize("values", BY_MICRO_BATCH.values(), ids=BY_MICRO_BATCH)
def test_experts_do_not_see_padding(values: dict[str, Any]) -> None:
    """With more padding after every text: the same tokens, the same experts."""
    whole = Text().batch(0, 6)
    assert whole.segments is not None
    wider = Batch(
        ids=functional.pad(whole.ids, (0, 9), value=5),
        segments=functional.pad(whole.segments, (0, 9)),
        targets={"language": functional.pad(whole.targets["language"], (0, 9), value=IGNORE)},
    )
    model = tiny_model(experts=4, **values)
    assert close(gradient(model, Language(), [whole]), gradient(model, Language(), [wider]))


CORRECTED: dict[str, Any] = {"experts": 4, "routing": {"correction": True}, "moe": {"balance": 0.0}}


def corrections(run: Run) -> Tensor:
    return torch.cat([p.detach() for n, p in run.model.named_parameters() if n.endswith("correction")])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_loads_are_of_the_whole_step(size: int) -> None:
    model = tiny_model(**CORRECTED)
    model.train()
    found = [
        gather(model, Language(), batches, list(range(len(batches))), seed=0, step=0).loads
        for batches in (split(8), split(size))
    ]
    assert found[0] == found[1]
    tokens = sum(float((row.targets["language"] != IGNORE).sum()) for row in split(1))
    assert [sum(loads[:-2]) for loads in found[0].values()] == [2 * tokens, 2 * tokens]


def test_the_correction_knows_no_split(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tiny_run(steps=4, micro_rows=rows, plan={"correction": 0.05}, **CORRECTED) for rows in (0, 1, 3)]
    for run in runs:
        fit(run)
    assert float(corrections(runs[0]).abs().max()) > 0.04
    assert torch.equal(corrections(runs[0]), corrections(runs[1]))
    assert torch.equal(corrections(runs[0]), corrections(runs[2]))
    faulty = tiny_run(steps=4, micro_rows=1, plan={"correction": 0.05}, **CORRECTED)
    real, last = step_module.measure, dict[str, Tensor]()

    def measure(*args: Any) -> Any:
        """The seeded fault: the loads of the last micro-batch only."""
        loss, parts = real(*args)
        for name, part in list(parts.items()):
            if part.ndim:
                parts[name] = part - last.get(name, torch.zeros_like(part))
                last[name] = part
        return loss, parts

    monkeypatch.setattr(step_module, "measure", measure)
    fit(faulty)
    assert not torch.equal(corrections(runs[0]), corrections(faulty))


@pytest.mark.parametrize(("rows", "micro", "size"), [(8, 0, 1), (8, 3, 1), (7, 2, 2), (2, 0, 2), (9, 4, 4), (1, 5, 1)])
def test_pieces_are_all_rows_once(rows: int, micro: int, size: int) -> None:
    found = pieces(100, rows, micro, size)
    assert [row for p in found for row in range(p.start, p.start + p.length)] == list(range(100, 100 + rows))
    assert all(1 <= p.length <= (micro or rows) for p in found)
    assert len(found) >= size
    assert [p.number for p in found] == list(range(len(found)))


TWO_RANKS = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
from safetensors.torch import save_file
from tests.train.tiny import tiny_run
from openbook.train import ranks, step
from openbook.train.loop import fit
folder, rank, port, fault = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
values = json.loads(sys.argv[5])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
if fault == "fault":  # each rank divides by the tokens it sees itself
    step.ranks.sum_numbers = lambda numbers, device: dict(numbers)
run = tiny_run(Path(folder) / f"rank{rank}", steps=6, micro_rows=3, rows=[(0, 8), (3, 5)], **values)
fit(run)
save_file({n: p.detach().clone() for n, p in run.model.named_parameters()}, f"{folder}/rank{rank}.safetensors")
dist.destroy_process_group()
"""


def two_ranks(folder: Path, project: Path, fault: str, values: dict[str, Any]) -> dict[str, Tensor]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", TWO_RANKS, str(folder)]
    both = [subprocess.Popen([*command, str(rank), port, fault, json.dumps(values)], cwd=project) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    first, second = (load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1))
    if fault == "none":
        assert all(torch.equal(first[name], second[name]) for name in first), "the ranks drifted apart"
    return first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "values"),
    [("none", {}), ("fault", {}), ("none", {**CORRECTED, "moe": Z_LOSS, "plan": {"correction": 0.01}})],
    ids=["plain", "fault", "experts"],
)
def test_two_ranks_are_one(fault: str, values: dict[str, Any], tmp_path: Path, project: Path) -> None:
    alone = tiny_run(steps=6, rows=[(0, 8), (3, 5)], **values)
    fit(alone)
    shared = two_ranks(tmp_path, project, fault, values)
    worst = max(float((shared[n] - p).abs().max()) for n, p in alone.model.named_parameters())
    assert (worst < 2e-4) == (fault == "none"), worst


def test_a_step_reads_the_rows_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch grows at step 2; the data position is a row counter, so no row is read twice nor left out."""
    run = tiny_run(steps=4, rows=[(0, 2), (2, 6)], micro_rows=2)
    read: list[int] = []
    real = Text.batch

    def watched(self: Text, start: int, rows: int) -> Batch:
        read.extend(range(start, start + rows))
        return real(self, start, rows)

    monkeypatch.setattr(Text, "batch", watched)
    for _ in range(4):
        advance(run)
    assert read == list(range(16))
    assert run.progress.row == 16
