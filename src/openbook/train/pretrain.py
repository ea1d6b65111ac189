"""From a recipe to a model folder: every stage is finished or absent, and the same command goes on where it stopped.

OUT/recipe.toml                        the resolved recipe
OUT/tokenizer/                         made from the text, or copied
OUT/text/ reading.json                 the text as memory-mapped ids; what was read of it
OUT/plan.json                          the number of steps, once it is fixed
OUT/checkpoints/ metrics.jsonl         the run so far
OUT/config.json model.safetensors …    the finished model, a Hugging Face folder
OUT/generator/                         the generator it was trained against, where it was
OUT/curve.png                          its loss
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openbook import runtime
from openbook.config import save as save_recipe
from openbook.data.documents import find_files
from openbook.data.loader import Reader
from openbook.errors import CheckpointError, MissingExtra, OpenbookError
from openbook.files import read_json, write_json
from openbook.generate.loop import generate_ids
from openbook.generate.sampling import Sampling
from openbook.log import caution, note, status
from openbook.models.cost import inventory, work
from openbook.models.load import save as save_model
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer
from openbook.train.budget import measure_pace, plan_for
from openbook.train.checkpoint import Checkpoints, differences, only_one, put_weights, require_space
from openbook.train.curve import losses, png_curve, text_curve
from openbook.train.display import View, watch
from openbook.train.guard import Guard
from openbook.train.learning import ENCODER_SPECIALS, check_model, learning, make_model
from openbook.train.loop import fit
from openbook.train.metrics import Journal, TensorBoard, Watcher, read_journal
from openbook.train.optim import Optimizer
from openbook.train.reading import check_paths, describe_packing, prepare_texts, reader, report, texts
from openbook.train.recipe import Recipe, identity
from openbook.train.replaced import Pair, ReplacedToken, generator_of
from openbook.train.run import Plan, Run, resume
from openbook.train.speed import compile_blocks, recompute_blocks

# Messages are one text that goes on: what the person writes next continues what the model wrote.
CONTINUE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
LOOKS = 10  # held-out measurements in a run, unless the recipe says otherwise

Sample = Callable[[LanguageModel], str]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where everything lies inside the run's folder."""

    out: Path

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer"

    @property
    def text(self) -> Path:
        return self.out / "text"

    @property
    def plan(self) -> Path:
        return self.out / "plan.json"

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @property
    def generator(self) -> Path:
        return self.out / "generator"

    @property
    def reading(self) -> Path:
        return self.out / "reading.json"

    @property
    def journal(self) -> Path:
        return self.out / "metrics.jsonl"


def pretrain(recipe: Recipe, *, watchers: Sequence[Watcher] | None = None) -> Path:
    """Train what `recipe` says and write it to `recipe.out`; returns that folder.

    `watchers` replace the display on standard error. Errors: everything that can be known is checked before work starts
    (ConfigError, DataError, TokenizerError, OpenbookError for the disk); Diverged; Interrupted after saving.
    """
    stages = Stages(out=recipe.out.expanduser())
    check_model(recipe)
    check_paths(recipe)
    runtime.use_threads(recipe.train.threads)
    runtime.keep_memory()
    with only_one(stages.out):
        refuse_other(recipe, stages)
        save_recipe(recipe, stages.out / "recipe.toml")
        tokenizer = prepare_tokenizer(recipe, stages)
        started = any(stages.checkpoints.glob("step-*"))
        shards = prepare_texts(recipe, stages.text, tokenizer, overwrite=not started)
        rows = reader(recipe, shards, tokenizer.pad or 0)
        packing = describe_packing(recipe.data, rows)
        run = compose(recipe, stages, tokenizer, rows)
        for line in rows.warnings(recipe.train.rows_of(run.plan.steps)):
            caution(line)
        with closing(run, watchers, recipe):
            fit(run)
        report(stages.reading, rows, run.progress.row, packing)
        export(recipe, stages, run, tokenizer)
    return stages.out


def refuse_other(recipe: Recipe, stages: Stages) -> None:
    """An error if the folder holds the checkpoints of another recipe; the plan of one that never saved is dropped."""
    if not stages.plan.exists():
        return
    try:
        before = read_json(stages.plan)["identity"]
    except (OpenbookError, KeyError, TypeError):
        before = {}
    now = json.loads(json.dumps(identity(recipe)))
    different = differences(before, now)
    if not different:
        return
    if any(stages.checkpoints.glob("step-*")):
        raise CheckpointError(
            f"'{stages.out}' holds a run of another recipe: {'; '.join(different[:6])}. Use the same recipe to "
            f"continue it, another --out to start a new run, or delete '{stages.out}'."
        )
    stages.plan.unlink()


def prepare_tokenizer(recipe: Recipe, stages: Stages) -> Tokenizer:
    """The recipe's tokenizer, loaded or trained; kept with the run."""
    part = recipe.tokenizer
    if part.path is not None:
        tokenizer = Tokenizer.load(part.path)
        check_model(recipe, tokenizer.vocab)
        return tokenizer
    made, mark = _mark(recipe), stages.tokenizer / "made.json"
    if mark.exists() and read_json(mark) == made:
        return Tokenizer.load(stages.tokenizer)
    status("making the tokenizer")
    if recipe.objective == "next":
        tokenizer = Tokenizer.train(texts(recipe), part.vocab)
    else:
        tokenizer = Tokenizer.train(texts(recipe), part.vocab, ENCODER_SPECIALS, closed=True)
    if part.chat != "turns":
        writes = part.chat == "continue" and recipe.objective == "next"
        tokenizer = tokenizer.with_chat_template(CONTINUE if writes else None)
    mark.unlink(missing_ok=True)
    tokenizer.save(stages.tokenizer)
    write_json(mark, made)  # last: the folder is whole
    status("")
    return tokenizer


def _mark(recipe: Recipe) -> dict[str, Any]:
    """What a trained tokenizer is made of: the files as they are now, and its settings."""
    facts = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for group in recipe.data.groups()
        for file in find_files(group)
    ]
    text = hashlib.sha256(repr(facts).encode()).hexdigest()
    part = recipe.tokenizer
    made = {} if recipe.objective == "next" else {"specials": ENCODER_SPECIALS}
    return {
        **made,
        "text": text,
        "field": recipe.data.field,
        "vocab": part.vocab,
        "megabytes": part.megabytes,
        "chat": part.chat,
    }


def compose(recipe: Recipe, stages: Stages, tokenizer: Tokenizer, loader: Reader) -> Run:
    """The run, resumed where its newest checkpoint stands."""
    part = recipe.train
    device = runtime.pick_device(part.device)
    model = make_model(recipe, tokenizer, device)
    dtype = runtime.pick_dtype(part.dtype, device)
    for one in (model, *([model.generator] if isinstance(model, Pair) else [])):
        one.compute_dtype = None if dtype == torch.float32 else dtype
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    model.config = {"model_type": recipe.model.family, **ends}
    held = loader.held_out(max(1, min(part.rows, part.micro_rows or part.rows)), limit=recipe.data.held_out_tokens)
    rows, heldout, objective = learning(recipe, model.spec, tokenizer, loader, held if len(held) else None)
    require_space(stages.checkpoints, model, recipe.checkpoint)
    if part.recompute:
        recompute_blocks(model)
    compile_blocks(model, part.compile)
    who = {
        "recipe": identity(recipe),
        "data": loader.state(0),
        "tokenizer": tokenizer.fingerprint,
        "dtype": str(dtype).removeprefix("torch."),
    }
    run = Run(
        model=model,
        objective=objective,
        rows=rows,
        optimizer=Optimizer(model, recipe.optimizer),
        schedule=recipe.schedule,
        plan=Plan(
            steps=part.steps or 1,
            rows=part.course(),
            micro_rows=part.micro_rows,
            clip=part.clip,
            seed=part.seed,
            patience=part.patience,
            improvement=part.improvement,
            correction=recipe.experts.correction,
        ),
        heldout=heldout,
        store=Checkpoints(stages.checkpoints, who, recipe.checkpoint),
        journal=Journal(stages.journal),
        sample=sampler(tokenizer, part.prompt) if part.prompt and model.spec.causal else None,
        guard=Guard(tolerance=part.divergence * (objective.weight if isinstance(objective, ReplacedToken) else 1.0)),
    )
    fix_plan(recipe, stages, run)
    resume(run)
    return run


def fix_plan(recipe: Recipe, stages: Stages, run: Run) -> None:
    """Settle the number of steps: the recipe's, the one kept with the run, or as many as fit into the time."""
    part = recipe.train
    if stages.plan.exists():
        kept = read_json(stages.plan)
        run.plan = replace(run.plan, steps=kept["steps"], heldout_every=kept["heldout_every"])
        return
    if part.minutes is not None:
        status("measuring how fast this machine trains this model")
        pace = measure_pace(run)
        status("")
        fits = plan_for(run.plan, pace, part.minutes * 60, LOOKS)
        run.plan = replace(fits, steps=min(fits.steps, part.steps or fits.steps))
    every = part.heldout_every or -(-run.plan.steps // LOOKS)
    run.plan = replace(run.plan, heldout_every=every)
    write_json(stages.plan, {"steps": run.plan.steps, "heldout_every": every, "identity": identity(recipe)})


def sampler(tokenizer: Tokenizer, prompt: str) -> Sample:
    """A function that lets a model continue `prompt`, the same way each time."""
    ids = tokenizer.prompt(prompt)

    def sample(model: LanguageModel) -> str:
        room = (model.spec.context or 1 << 20) - len(ids)
        if room < 1:
            return ""
        drawing = Sampling(max_tokens=min(48, room), temperature=0.8, top_p=0.95, seed=1)
        (result,) = generate_ids(model, [ids], drawing, eos=tokenizer.stops)
        return prompt + tokenizer.decode(result.ids)

    return sample


@contextlib.contextmanager
def closing(run: Run, watchers: Sequence[Watcher] | None, recipe: Recipe) -> Iterator[None]:
    """Put watchers on the run, and close them and the journal however it ends."""
    shown: list[Watcher] = [watch(view_of(run, recipe))] if watchers is None else list(watchers)
    if recipe.train.tensorboard:
        shown.append(TensorBoard(recipe.out / "tensorboard", purge_step=run.progress.step + 1))
    run.watchers = shown
    if run.progress.step:
        note(f"Going on from step {run.progress.step:,} of {run.plan.steps:,}.")
    try:
        yield
    finally:
        for watcher in shown:
            watcher.close()
        if run.journal is not None:
            run.journal.close()


def view_of(run: Run, recipe: Recipe) -> View:
    """What the display knows of the run before it begins."""
    model = run.model
    models = [model, *([model.generator] if isinstance(model, Pair) else [])]
    parameters = sum(p.numel() for p in model.parameters())
    peak = 0.0
    if model.device.type == "cpu":
        peaks = runtime.peaks(torch.get_num_threads())
        peak = 1e9 * (peaks.bfloat16 if model.dtype == torch.bfloat16 else peaks.float32)
    return View(
        steps=run.plan.steps,
        name=f"{recipe.out.name} · {parameters / 1e6:.1f} M parameters",
        flops=sum(work(inventory(one.spec), recipe.data.block).training for one in models),
        peak=peak,
    )


def export(recipe: Recipe, stages: Stages, run: Run, tokenizer: Tokenizer) -> None:
    """Write the finished model as a Hugging Face folder, and its loss curve."""
    if recipe.train.patience and run.store is not None and run.progress.best_step != run.progress.step:
        best = run.store.best()
        if best is not None:
            note(f"The weights are those of step {run.progress.best_step:,}, the best on held-out text.")
            put_weights(run.model, best)
    run.model.eval()
    models, done = {stages.out: run.model}, check_model(recipe, tokenizer.vocab, training=False)
    if isinstance(run.model, Pair):
        models[stages.out], models[stages.generator] = run.model.apart()
        models[stages.generator].spec = generator_of(done, recipe.generator.share)
    models[stages.out].spec = done  # few families could say the rest
    for folder, model in models.items():
        save_model(model, folder, dtype=recipe.export_dtype)
        tokenizer.save(folder)
    records = read_journal(stages.journal)
    try:
        png_curve(records, stages.out / "curve.png", title=recipe.out.name)
    except MissingExtra as error:
        note(str(error))
    except OpenbookError as error:
        caution(str(error))
    note(text_curve(losses(records)[0], title="loss (nats per token)"))
