"""The training loop, over any objective.

    step → metrics → held-out → checkpoint → again

Nothing here knows a global batch: a step is a range of rows. Everything the next step depends on is in the
checkpoint, so a run that was killed and resumed is, bit for bit, the run that was not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from openbook.data.batch import Batch
from openbook.train import ranks
from openbook.train.checkpoint import weights_of
from openbook.train.experts import correct, utilisation
from openbook.train.guard import Where, explain
from openbook.train.heldout import Texts, evaluate
from openbook.train.run import Progress, Run, save
from openbook.train.step import clip, gather, gradient_norms, pieces, seed_piece
from openbook.train.stop import Interrupted, Stop


def fit(run: Run) -> Progress:
    """Train until the plan is fulfilled. Errors: Diverged, Interrupted (after saving), OpenbookError from saving."""
    began = time.monotonic() - run.progress.seconds
    saved = run.progress.step
    with Stop() as stop:
        while not run.done:
            run.model.train()
            started = time.monotonic()
            record = advance(run)
            now = time.monotonic()
            run.progress.seconds = now - began
            run.tell({**record, "took": round(now - started, 4), "seconds": round(now - began, 3)})
            every = run.plan.heldout_every
            if run.progress.step == run.plan.steps or (every and run.progress.step % every == 0):
                look(run)
            due = run.store is not None and run.store.due()
            stopping, saving = ranks.agree((stop.asked, due), run.model.device)
            if saving or stopping or run.done:
                saved = save(run, saved)
            if stopping and not run.done:
                kept = (
                    f"and saved; {run.resume_with} continues from there"
                    if run.store
                    else "without saving: no folder was given"
                )
                raise Interrupted(f"Stopped at step {run.progress.step} of {run.plan.steps} {kept}.")
    return run.progress


def advance(run: Run) -> dict[str, Any]:
    """One optimiser step; returns what happened. Errors: Diverged, before anything was updated."""
    plan, progress, step = run.plan, run.progress, run.progress.step
    rows = plan.rows_at(step)
    mine = pieces(progress.row, rows, plan.micro_rows, ranks.size())[ranks.rank() :: ranks.size()]
    batches = [run.rows.batch(piece.start, piece.length) for piece in mine]
    numbers = [piece.number for piece in mine]
    run.optimizer.clear()
    sums = gather(run.model, run.objective, batches, numbers, plan.seed, step)
    norms = gradient_norms(run.model)
    norm = norms.total.item()
    factor = run.schedule.factor(step, plan.steps)
    problem = run.guard.problem(sums.loss, norm)
    if problem:
        last = run.store.last if run.store else None
        span = (progress.row, progress.row + rows)
        where = Where(step=step, rows=span, lr=run.optimizer.settings.lr * factor, clip=plan.clip, checkpoint=last)
        raise explain(problem, where, run.guard, run.model, lambda: _again(run, batches, numbers))
    clip(run.model, norm, plan.clip)
    lr = run.optimizer.step(factor)
    if plan.correction:
        correct(run.model, sums.loads, plan.correction)
    progress.step, progress.row, progress.tokens = step + 1, progress.row + rows, progress.tokens + sums.tokens
    record: dict[str, Any] = {
        "kind": "step",
        "step": step + 1,
        "loss": sums.loss,
        **sums.shown,
        "lr": lr,
        "norm": norm,
        "rows": rows,
    }
    record["tokens"] = progress.tokens
    if sums.loads:
        record["experts"] = utilisation(sums.loads)
    if plan.layers_every and step % plan.layers_every == 0:
        record["norms"] = norms.by_layer()
    return record


def _again(run: Run, batches: Sequence[Batch], numbers: Sequence[int]) -> None:
    for number, batch in zip(numbers, batches, strict=True):
        seed_piece(run.plan.seed, run.progress.step, number)
        run.objective(run.model, batch.to(run.model.device))


def look(run: Run) -> None:
    """Measure the held-out text, remember whether it got better, keep the best weights, and show a sample."""
    with torch.compiler.set_stance("force_eager"):  # other shapes than training's: not worth compiling for
        if run.heldout is not None:
            _measure_heldout(run, run.heldout)
        if run.sample is not None and ranks.rank() == 0:
            run.model.eval()
            with torch.no_grad():
                run.tell({"kind": "sample", "step": run.progress.step, "text": run.sample(run.model)})
            run.model.train()


def _measure_heldout(run: Run, heldout: Texts) -> None:
    step = run.progress.step
    found = evaluate(run.model, run.objective, heldout)
    run.tell({"kind": "heldout", "step": step, **found})
    best = run.progress.best
    if best is None or found["loss"] < best - run.plan.improvement:
        run.progress.best, run.progress.best_step, run.progress.stale = found["loss"], step, 0
        if run.store is not None and run.store.cadence.best and ranks.rank() == 0:
            run.store.save_best(weights_of(run.model), {"step": step, **found})
    else:
        run.progress.stale += 1
