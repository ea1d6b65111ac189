"""The loop and what surrounds it: stopping, guard, early stopping, journal, precision, display, curve."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from openbook.data.batch import Batch
from openbook.errors import ConfigError, DataError, Diverged, OpenbookError
from openbook.train.budget import Pace, measure_pace, plan_for
from openbook.train.curve import losses, png_curve, smooth, text_curve
from openbook.train.display import Panelled, Plain, View, clock
from openbook.train.guard import WAIT, Guard
from openbook.train.heldout import evaluate, perplexity
from openbook.train.loop import advance, fit
from openbook.train.metrics import Journal, TensorBoard, read_journal
from openbook.train.objectives import Classification, Language, Masking, mask_tokens
from openbook.train.run import Plan, resume
from openbook.train.speed import compile_blocks, recompute_blocks
from openbook.train.stop import Interrupted
from tests.train.tiny import Held, Text, tiny_model, tiny_run


class Says:
    """A watcher that does something when a step is done."""

    def __init__(self, act: Any) -> None:
        self.act, self.records = act, []  # type: ignore[var-annotated]

    def record(self, record: Any) -> None:
        self.records.append(record)
        self.act(record)

    def close(self) -> None:
        """Nothing."""


def test_it_learns() -> None:
    run = tiny_run(steps=60, micro_rows=4)
    says = Says(lambda _: None)
    run.watchers = [says]
    fit(run)
    found = [r["loss"] for r in says.records if r["kind"] == "step"]
    assert found[-1] < 0.75 * found[0]
    held = [r for r in says.records if r["kind"] == "heldout"]
    assert [r["step"] for r in held] == list(range(5, 61, 5))
    assert held[-1]["bits_per_byte"] < held[0]["bits_per_byte"]
    first = says.records[0]
    assert {"nll", "lr", "norm", "tokens", "seconds", "rows", "norms"} <= first.keys()
    assert first["norm"] == pytest.approx(sum(n * n for n in first["norms"].values()) ** 0.5, rel=1e-5)
    assert set(first["norms"]) == {"embed.tokens", "stack.blocks.0", "stack.blocks.1", "stack.final_norm"}


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.watchers = [Says(lambda r: os.kill(os.getpid(), signal.SIGINT) if r["step"] == 4 else None)]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"Stopped at step 4 of 12 and saved; the same command continues") as caught:
        fit(run)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    again = tiny_run(tmp_path)
    assert resume(again)
    assert again.progress.step == 4


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(record: Any) -> None:
        if record["kind"] == "step" and record["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run = tiny_run(tmp_path)
    run.watchers = [Says(twice)]
    with pytest.raises(KeyboardInterrupt):
        fit(run)


def test_it_runs_outside_the_main_thread() -> None:
    run = tiny_run(steps=2)
    thread = threading.Thread(target=fit, args=(run,))
    thread.start()
    thread.join()
    assert run.progress.step == 2


def poison(name: str, value: float) -> Any:
    """A hook on one module of a tiny run that makes its output not finite at step 3."""
    run = tiny_run(steps=8)
    module = run.model.get_submodule(name)
    module.register_forward_hook(lambda *a: a[2] * value if run.progress.step == 3 else None)
    return run


@pytest.mark.parametrize("name", ["stack.blocks.1.branches.0.layer", "stack.blocks.0", "embed"])
def test_nan_stops_before_the_update_and_names_the_layer(name: str) -> None:
    run = poison(name, float("nan"))
    for _ in range(3):
        advance(run)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    with pytest.raises(Diverged) as caught:
        advance(run)
    said = str(caught.value)
    assert "step 3" in said
    assert f"`{name}`" in said
    assert "Rows 24 to 31" in said
    assert "optimizer.lr" in said
    assert "No checkpoint" in said
    assert all(torch.equal(p, before[n]) for n, p in run.model.named_parameters())
    assert run.progress.step == 3


def test_a_gradient_that_breaks_alone_is_named(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, every=0.0)
    weight = run.model.get_parameter("stack.blocks.1.branches.1.layer.down.weight")
    weight.register_hook(lambda g: g * float("inf") if run.progress.step == 5 else g)
    with pytest.raises(
        Diverged, match=r"(?s)gradient is not finite.*branches\.1\.layer\.down\.weight.*step-0000000005"
    ):
        fit(run)


def test_a_loss_that_runs_away_stops() -> None:
    guard = Guard(tolerance=1.0)
    assert all(guard.problem(5.0 - step / 100, 1.0) is None for step in range(WAIT * 2))
    problems = [guard.problem(9.0, 1.0) for _ in range(40)]
    assert problems[0] is None, "one bad step is no divergence"
    assert "climbed" in str(problems[-1])
    quiet = Guard(tolerance=0.0)
    assert all(quiet.problem(float(step), 1.0) is None for step in range(300))
    restored = Guard(tolerance=1.0)
    restored.restore(json.loads(json.dumps(guard.state())))
    assert restored == guard


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, steps=200, plan={"patience": 2, "improvement": 100.0, "heldout_every": 3})
    fit(run)
    assert run.progress.step == 9, "the first measurement is the best, two more are stale"
    assert run.progress.best_step == 3


def test_dead_data_and_dead_losses_are_said() -> None:
    run = tiny_run()
    run.model.requires_grad_(False)
    run.model.stack.final_norm.weight.requires_grad_(True)  # type: ignore[union-attr]
    run.rows = type("Empty", (), {"batch": lambda _, start, rows: empty(Text().batch(start, rows))})()
    record = advance(run)
    assert record["loss"] == 0.0
    run.model.requires_grad_(False)
    with pytest.raises(DataError, match="No parameter received a gradient"):
        advance(run)


def empty(batch: Batch) -> Batch:
    return Batch(ids=batch.ids, segments=batch.segments, targets={"language": torch.full_like(batch.ids, -100)})


def test_the_journal_is_cut_back_on_resume(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, plan={"heldout_every": 0})
    fit(run)
    lines = read_journal(tmp_path / "metrics.jsonl")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 13}\n{"kind"')
    again = tiny_run(tmp_path, plan={"heldout_every": 0})
    assert resume(again)
    assert read_journal(tmp_path / "metrics.jsonl") == lines
    assert fit(again).step == 12


def test_a_lost_journal_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny_run(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    assert resume(tiny_run(tmp_path))
    assert "shorter" in capsys.readouterr().err


def test_a_journal_says_nan_in_words(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m.jsonl")
    journal.record({"kind": "step", "loss": float("nan"), "norms": {"a": float("inf")}})
    assert read_journal(tmp_path / "m.jsonl") == [{"kind": "step", "loss": "nan", "norms": {"a": "inf"}}]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    board.record({"kind": "step", "step": 1, "loss": 2.0, "norms": {"a": 1.0}})
    board.record({"kind": "sample", "step": 1, "text": "once"})
    board.close()
    assert list(tmp_path.glob("events*"))


def test_bfloat16_compute_keeps_fp32_parameters_and_learns() -> None:
    run = tiny_run(steps=40)
    run.model.compute_dtype = torch.bfloat16
    first = advance(run)["loss"]
    fit(run)
    assert advance(run)["loss"] < 0.85 * first
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_recomputed_blocks_give_the_same_gradients_with_dropout() -> None:
    plain, again = tiny_run(dropout=0.3), tiny_run(dropout=0.3)
    recompute_blocks(again.model)
    for run in (plain, again):
        run.model.train()
        for _ in range(3):
            advance(run)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_experts_learn_to_share(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, experts=4, steps=3)
    fit(run)
    record = read_journal(tmp_path / "metrics.jsonl")[0]
    assert record["loss"] == pytest.approx(record["language"] + 0.01 * record["balance"], rel=1e-6)
    assert "balance" not in evaluate(run.model, Language(), Held())


def test_evaluation_is_plain_and_leaves_no_trace() -> None:
    model = tiny_model(dropout=0.5)
    plain = evaluate(model, Language(), Held())
    assert plain == evaluate(model, Language(label_smoothing=0.3, z_loss=1.0), Held())
    assert plain["loss"] == plain["language"] == pytest.approx(plain["nll"])
    assert model.training
    found = perplexity(model, Held(), "a tokenizer")
    assert found.plain() == {key: plain[key] for key in found.plain()}
    assert found.per_token == pytest.approx(math.exp(plain["nll"]))
    assert (found.bytes, found.tokenizer) == (Held.bytes, "a tokenizer")
    assert found.nats == pytest.approx(plain["bits_per_byte"] * math.log(2) * Held.bytes)


def test_masking_is_bert_s() -> None:
    ids = torch.arange(400).repeat(50, 1) % 61
    masking = Masking(mask=60, vocab=61, specials=(0, 60))
    made = mask_tokens(Batch(ids=ids), masking, seed=1, first_row=0)
    chosen = made.targets["language"] != -100
    assert chosen.float().mean() == pytest.approx(0.15 * 59 / 61, abs=0.01)
    assert torch.equal(made.targets["language"][chosen], ids[chosen])
    assert not chosen[(ids == 0) | (ids == 60)].any()
    assert (made.ids[chosen] == 60).float().mean() == pytest.approx(0.8 + 0.1 / 61, abs=0.03)
    assert (made.ids[chosen] == ids[chosen]).float().mean() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(made.ids[~chosen], ids[~chosen])


def test_objectives_say_what_is_missing() -> None:
    batch = Text().batch(0, 2)
    with pytest.raises(DataError, match="no targets 'other'"):
        Language(target="other").counts(batch)
    with pytest.raises(ConfigError, match="label_smoothing"):
        Language(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="z_loss"):
        Language(z_loss=-1.0)


def test_classification_of_rows() -> None:
    from dataclasses import replace

    from openbook.nn import spec
    from openbook.nn.build import build
    from openbook.nn.init import initialise
    from tests.train.tiny import tiny_spec

    model = build(replace(tiny_spec(), heads=(spec.Classes(count=3, over="last"),)))
    initialise(model, 0, 0.3)
    text = Text().batch(0, 4)
    batch = Batch(ids=text.ids, segments=text.segments, targets={"classes": torch.tensor([0, 2, -100, 1])})
    objective = Classification()
    assert objective.counts(batch) == {"classes": 3.0}
    term = objective(model, batch)["classes"]
    term.total.backward()  # type: ignore[no-untyped-call]
    assert term.total > 0
    assert 0 <= term.shown["accuracy"] <= 3


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"steps": 1, "rows": ((1, 8),)}, {"steps": 1, "rows": ((0, 0),)}, {"steps": 1, "clip": -1.0}],
)
def test_impossible_plans(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`train\."):
        Plan(**values)


def test_measuring_the_pace_changes_nothing() -> None:
    run, other = tiny_run(dropout=0.2), tiny_run(dropout=0.2)
    run.heldout = Held()
    pace = measure_pace(run)
    assert pace.row > 0
    assert pace.spent >= pace.look > 0
    fit(run)
    fit(other)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, other.model.get_parameter(name))


def test_a_budget_is_a_number_of_steps() -> None:
    pace = Pace(row=0.1, look=2.0, spent=10.0)
    assert plan_for(Plan(steps=1, rows=((0, 10),)), pace, 240.0, 10).steps == int((230 * 0.94 - 20) / 1.0)
    ramped = plan_for(Plan(steps=1, rows=((0, 10), (50, 20))), pace, 240.0, 10)
    assert ramped.steps == 50 + int((230 * 0.94 - 20 - 50) / 2.0)
    with pytest.raises(ConfigError, match=r"too short"):
        plan_for(Plan(steps=1), pace, 12.0, 10)


def test_compiling_is_a_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from openbook.train import speed

    monkeypatch.setattr(speed, "compile_obstacle", lambda: "there is no C++ compiler.")
    assert not compile_blocks(tiny_model(), "off")
    assert not compile_blocks(tiny_model(), "auto")
    assert "no C++ compiler" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="compiler"):
        compile_blocks(tiny_model(), "on")


@pytest.mark.slow
def test_compiled_is_eager() -> None:
    if not compile_blocks(compiled := tiny_model(), "auto"):
        pytest.skip("no compiler here")
    one, other = tiny_run(steps=3), tiny_run(steps=3, model=compiled)
    fit(one)
    fit(other)
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter, other.model.get_parameter(name), rtol=1e-3, atol=1e-4)


RECORDS = [
    {"kind": "step", "step": 1, "loss": 5.0, "tokens": 100, "took": 0.5, "seconds": 1.0},
    {"kind": "step", "step": 2, "loss": 4.0, "tokens": 200, "took": 0.5, "seconds": 2.0},
    {
        "kind": "heldout",
        "step": 2,
        "loss": 4.1,
        "perplexity_per_token": 60.34,
        "perplexity_per_byte": 2.828,
        "bits_per_byte": 1.5,
    },
    {"kind": "sample", "step": 2, "text": "Once\nupon"},
    {"kind": "step", "step": 3, "loss": 3.5, "tokens": 300, "took": 0.5, "seconds": 3.0},
]


def test_plain_lines_say_it_all() -> None:
    stream = io.StringIO()
    plain = Plain(View(steps=10, flops=1e7, peak=1e10), stream, every=0.0)
    for record in RECORDS:
        plain.record(record)
    plain.close()
    said = stream.getvalue()
    heldout = "held-out 1.500 bits per byte, perplexity 60.34 a token, 2.828 a byte"
    assert f"step 3 of 10 · loss 3.500 · {heldout} · speed 200 tokens/s, 20% of" in said
    assert "left 0:07" in said
    assert "sample: Once upon" in said
    stream.close()
    plain.record(RECORDS[-1])  # nobody reads any more


def test_the_panel_shows_it_too() -> None:
    stream = io.StringIO()
    panel = Panelled(View(steps=10, name="tiny"), Console(file=stream, force_terminal=True, width=100))
    for record in RECORDS:
        panel.record(record)
    panel.close()
    assert "3 of 10" in stream.getvalue()
    assert "tiny" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (187, "3:07"), (3723, "1:02:03")])
def test_durations(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_the_curve_as_text() -> None:
    drawn = text_curve([(float(x), 10 - x / 100) for x in range(1, 501)], width=40, height=5)
    lines = drawn.splitlines()
    assert lines[1].startswith("9.96 ┤⠉")
    assert max(map(len, lines)) <= 46
    assert "step 499" in drawn
    assert "too few" in text_curve([(1.0, 1.0)])
    assert text_curve([(1.0, 2.0), (2.0, 2.0)])
    assert len(smooth([(float(x), 1.0) for x in range(1001)], 100)) <= 100


def test_the_curve_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png_curve(RECORDS, tmp_path / "curve.png", title="tiny")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    trained, held = losses([*RECORDS, {"kind": "step", "step": 4, "loss": "nan"}])
    assert len(trained) == 3
    assert held == [(2.0, 1.5)]
    with pytest.raises(OpenbookError, match="no steps"):
        png_curve([], tmp_path / "none.png")
