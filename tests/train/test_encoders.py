"""Encoders trained on hidden and replaced words: the losses are the reference's, law 5 holds, recipes run through."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.config import load as load_recipe
from openbook.data.batch import Batch
from openbook.errors import ConfigError
from openbook.generate.masked import fill
from openbook.models.load import load, save
from openbook.models.make import spec_of
from openbook.models.names import locate, publish
from openbook.models.registry import family_of
from openbook.nn.model import LanguageModel
from openbook.text.tokenizer import Tokenizer
from openbook.train import replaced as room
from openbook.train.loop import advance, fit
from openbook.train.masked import MaskedRows, hide
from openbook.train.metrics import read_journal
from openbook.train.objectives import Language, Masking
from openbook.train.optim import Optimisation, Optimizer
from openbook.train.pretrain import pretrain
from openbook.train.recipe import Recipe
from openbook.train.replaced import Pair, ReplacedToken, draw, generator_of, make_pair
from openbook.train.run import resume
from openbook.train.run import save as save_run
from openbook.train.step import gather
from tests.train.tiny import BLOCK, VOCAB, Text, tiny_run

BOUND = 2e-6  # of the largest gradient, as in test_training_invariance.py
MASKING = Masking(mask=60, vocab=VOCAB, rate=0.3, random=0.0, keep=0.0)
SIZES = {"vocab": VOCAB, "dim": 24, "layers": 2, "heads": 4, "hidden": 32, "context": BLOCK}
MORE = {"embedding_size": 12, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def pair(seed: int = 1) -> Pair:
    made = make_pair(spec_of("electra", SIZES, MORE, "replaced"), 0.5, seed)
    made.config = {"model_type": "electra"}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # large enough to disagree about things
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return made


def rows(start: int, count: int) -> Batch:
    return MaskedRows(Text(), MASKING, 5, draws=True).batch(start, count)


def gradient(model: Pair, batches: list[Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()
    gather(model, ReplacedToken(), batches, list(range(len(batches))), seed=0, step=0)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    scale = max(float(value.abs().max()) for value in one.values())
    return one.keys() == other.keys() and all(float((one[n] - other[n]).abs().max()) <= BOUND * scale for n in one)


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_of_both_is_the_references(tmp_path: Path) -> None:
    """With transformers' two models on the same hidden and drawn words."""
    import transformers

    model, batch = pair(), rows(0, 60)
    for folder, one in zip(("discriminator", "generator"), model.apart(), strict=True):
        save(one, tmp_path / folder)
    generator = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
    discriminator = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "discriminator").eval()
    for one in (generator, discriminator):
        one.electra.embeddings.word_embeddings.padding_idx = None  # id 0 is a word here
    terms = ReplacedToken()(model.eval(), batch)
    targets, real = batch.targets["language"], batch.segments != 0
    chosen = targets != -100
    theirs = generator(input_ids=batch.ids, attention_mask=real.long(), labels=targets)
    ids = torch.where(chosen, targets, batch.ids)
    ids[chosen] = draw(theirs.logits[chosen], batch.targets["draw"][chosen])
    fake = (chosen & (ids != targets)).long()
    assert 0 < fake.sum() < chosen.sum()
    judged = discriminator(input_ids=ids, attention_mask=real.long(), labels=fake)
    counts = ReplacedToken().counts(batch)
    assert counts == {"language": float(chosen.sum()), "replaced": float(real.sum())}
    torch.testing.assert_close(terms["language"].total / counts["language"], theirs.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["replaced"].total / counts["replaced"], judged.loss, rtol=1e-5, atol=1e-5)
    assert terms["replaced"].weight == 50
    assert terms["replaced"].shown["fakes"] == fake.sum()
    sum(term.weight * term.total / counts[name] for name, term in terms.items()).backward()
    (theirs.loss + 50 * judged.loss).backward()
    expected = [reference_gradients(one) for one in (discriminator, generator)]
    for number, one in enumerate(model.apart()):
        for name, gradient in gradients_of(one).items():
            shared = ".embeddings." in name  # then the gradients of both add up
            total = sum(each[name] for each in expected) if shared else expected[number][name]
            torch.testing.assert_close(gradient, total, rtol=1e-5, atol=1e-5 * max(1.0, float(total.abs().max())))


def gradients_of(model: LanguageModel) -> dict[str, Tensor]:
    """Our gradients under their published names."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    shapes = {name: gradient.shape for name, gradient in found.items()}
    places = locate(family_of("electra").names(model.spec), shapes)
    return {name: make() for name, make in publish(places, found).items()}


def reference_gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}


def test_the_generator_learns_from_its_words_alone() -> None:
    """What the discriminator finds moves nothing of the generator but the embedding that they share."""
    model, batch = pair(), rows(0, 4)
    ReplacedToken()(model, batch)["replaced"].total.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert not any(name.startswith("generator.") for name in moved)
    assert "embed.tokens.weight" in moved
    assert model.generator.embed is model.embed


def test_words_are_drawn_by_their_chances() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.0, 0.7]])).expand(40_000, -1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(draw(logits, uniform), minlength=4) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.0, 0.7]), rtol=0, atol=0.01)
    assert draw(torch.zeros(1, 5), torch.tensor([1.0])).item() == 4


def test_the_generator_is_as_small_as_it_is_said() -> None:
    model = spec_of("electra", SIZES, MORE, "replaced")
    small = generator_of(model, 0.25)
    layer, mlp = (branch.layer for branch in small.stack.blocks[0].branches)
    assert (layer.heads, layer.head_dim, small.stack.dim, mlp.hidden) == (1, 6, 6, 8)
    assert small.embed == model.embed
    with pytest.raises(ConfigError, match="head 'replaced'"):
        make_pair(spec_of("bert", SIZES, {}, "language"), 0.25, 0)


# ------------------------------------------------------------------------------------------------ law 5


@pytest.mark.parametrize("size", [1, 3])
def test_one_batch_of_eight_is_eight_of_one(size: int) -> None:
    model = pair()
    whole, split = [rows(0, 8)], [rows(at, min(size, 8 - at)) for at in range(0, 8, size)]
    assert len({float((b.targets["language"] != -100).sum()) for b in split}) > 1, "the counts must be unequal"
    assert close(gradient(model, whole), gradient(model, split))


def test_words_drawn_from_a_common_source_break_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair()
    monkeypatch.setattr(room, "draw", lambda logits, _: draw(logits, torch.rand(len(logits))))
    assert not close(gradient(model, [rows(0, 8)]), gradient(model, [rows(at, 1) for at in range(8)]))


def test_what_is_hidden_is_a_function_of_the_row() -> None:
    whole, ones = rows(3, 5), [rows(at, 1) for at in range(3, 8)]
    assert torch.equal(whole.ids, torch.cat([one.ids for one in ones]))
    for name in ("language", "draw"):
        assert torch.equal(whole.targets[name], torch.cat([one.targets[name] for one in ones]))
    plain = Text().batch(3, 5)
    same = whole.targets["language"] == -100
    assert torch.equal(whole.ids[same], plain.ids[same])
    assert not torch.equal(hide(plain, MASKING, 5, 3).ids, hide(plain, MASKING, 5, 4).ids)
    assert not torch.equal(hide(plain, MASKING, 5, 3).ids, hide(plain, MASKING, 6, 3).ids)


def electra_run(folder: Path, steps: int) -> Any:
    run = tiny_run(folder, steps=steps, micro_rows=3, every=0.0, objective=ReplacedToken(), model=pair())  # type: ignore[arg-type]
    run.rows, run.heldout = MaskedRows(Text(), MASKING, 5, draws=True), None
    run.optimizer = Optimizer(run.model, Optimisation(lr=0.01))
    return run


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    whole = electra_run(tmp_path / "whole", 6)
    resume(whole)
    fit(whole)
    first = electra_run(tmp_path / "parts", 6)
    resume(first)
    for _ in range(3):
        advance(first)
    save_run(first, 0)
    second = electra_run(tmp_path / "parts", 6)
    assert resume(second)
    while not second.done:
        advance(second)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), name


# ------------------------------------------------------------------------------------------------ recipes

RECIPE = """
out = "unset"
objective = "{objective}"
[data]
text = ["{text}"]
block = 32
held_out = 0.1
held_out_tokens = 500
[tokenizer]
vocab = 400
[model]
family = "{family}"
dim = 32
layers = 2
heads = 4
hidden = 48
[model.more]
{more}
[train]
steps = 6
rows = 4
micro_rows = 3
compile = "off"
dtype = "float32"
threads = 1
[optimizer]
lr = 0.01
"""


def recipe(root: Path, project: Path, family: str, objective: str, more: str = "", out: str = "run") -> Recipe:
    path = root / f"{family}.toml"
    text = project / "tests/data/slices/stories.jsonl"
    path.write_text(RECIPE.format(text=text, family=family, objective=objective, more=more))
    return load_recipe(Recipe, path, ["--out", str(root / out)])


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("roberta", ""),
        pytest.param("bert", "", marks=pytest.mark.slow),
        pytest.param("modernbert", "", marks=pytest.mark.slow),
        pytest.param("albert", "embedding_size = 16", marks=pytest.mark.slow),
    ],
)
def test_hidden_words_by_recipe(family: str, more: str, tmp_path: Path, project: Path) -> None:
    import transformers

    out = pretrain(recipe(tmp_path, project, family, "masked", more), watchers=[])
    ours, tokenizer = load(out), Tokenizer.load(out)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(out).eval()
    ids = tokenizer.prompt("Once upon a time there was a <mask>.", allow_specials=["<mask>"])
    assert ids == transformers.AutoTokenizer.from_pretrained(out)("Once upon a time there was a <mask>.")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eos)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(ours(torch.tensor([ids])), logits, rtol=1e-5, atol=1e-5)
    assert tokenizer.mask is not None
    ((blank,),) = fill(ours, [ids], tokenizer.mask)
    assert len(blank.top) == 5
    lines = read_journal(out / "metrics.jsonl")
    assert all("bits_per_byte" not in line for line in lines)
    assert [line["loss"] for line in lines if line["kind"] == "heldout"]
    assert ours.spec.context == 32


def test_replaced_words_by_recipe(tmp_path: Path, project: Path) -> None:
    import transformers

    made = recipe(tmp_path, project, "electra", "replaced", "embedding_size = 16")
    out = pretrain(made, watchers=[])
    discriminator, generator, tokenizer = load(out), load(out / "generator"), Tokenizer.load(out)
    assert discriminator.spec.heads[0].name == "replaced"  # type: ignore[union-attr]
    assert generator.spec.stack.dim == 8
    assert torch.equal(generator.embed.tokens.weight, discriminator.embed.tokens.weight)
    ids = torch.tensor([tokenizer.prompt("Once upon a time there was a dog.")])
    with torch.no_grad():
        theirs = transformers.ElectraForPreTraining.from_pretrained(out).eval()(ids).logits
        torch.testing.assert_close(discriminator(ids).squeeze(-1), theirs, rtol=1e-5, atol=1e-5)
        theirs = transformers.ElectraForMaskedLM.from_pretrained(out / "generator").eval()(ids).logits
        torch.testing.assert_close(generator(ids), theirs, rtol=1e-5, atol=1e-5)
    step = read_journal(out / "metrics.jsonl")[0]
    assert step["loss"] == pytest.approx(step["language"] + 50 * step["replaced"], rel=1e-5)
    assert 0 < step["fakes"] < 0.5
    before = (out / "model.safetensors").read_bytes()
    pretrain(made, watchers=[])  # the same command again changes nothing
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_hidden_words_are_learned() -> None:
    """In the rows of `Text` a word is between its neighbours: soon better than the words' own shares."""
    from openbook.models.make import make

    more = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make(spec_of("bert", {**SIZES, "layers": 1}, more, "language"), 0)
    run = tiny_run(steps=150, rows=[(0, 16)], objective=Language(), model=model)
    run.rows, run.heldout = MaskedRows(Text(), replace(MASKING, rate=0.15), 5), None
    records: list[Any] = []
    run.watchers = [type("Keep", (), {"record": lambda _, record: records.append(record), "close": lambda _: None})()]
    fit(run)
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert losses[0] > 3.5
    assert sum(losses[-10:]) / 10 < 2.8


@pytest.mark.slow
def test_replaced_words_are_found() -> None:
    """Far better than whoever knows only how many there are."""
    sizes = {**SIZES, "dim": 48, "hidden": 96}
    model = make_pair(spec_of("electra", sizes, MORE, "replaced"), 0.5, 0)
    run = tiny_run(steps=220, rows=[(0, 16)], objective=ReplacedToken(), model=model)  # type: ignore[arg-type]
    run.rows, run.heldout = MaskedRows(Text(), replace(MASKING, rate=0.15), 5, draws=True), None
    run.optimizer = Optimizer(model, Optimisation(lr=0.003))
    records: list[Any] = []
    run.watchers = [type("Keep", (), {"record": lambda _, record: records.append(record), "close": lambda _: None})()]
    fit(run)
    last = [record for record in records if record["kind"] == "step"][-20:]
    share, loss = (sum(record[name] for record in last) / 20 for name in ("fakes", "replaced"))
    blind = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert loss < 0.6 * blind


@pytest.mark.parametrize(
    ("family", "objective", "says"),
    [
        ("bert", "next", 'objective = "masked"'),
        ("llama", "masked", "see both ways"),
        ("bert", "replaced", "head 'replaced'"),
    ],
)
def test_what_does_not_fit_is_said_before_work(
    family: str, objective: str, says: str, tmp_path: Path, project: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        pretrain(recipe(tmp_path, project, family, objective), watchers=[])
    assert not (tmp_path / "run").exists()
