"""`describe`: exact for published sizes, the same counts as the built model, a page that fits."""

from __future__ import annotations

import json
import time
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import CheckpointError, ConfigError, InputError
from openbook.models import cost
from openbook.models.describe import describe
from openbook.models.load import save
from openbook.models.make import make
from openbook.models.memory import training
from openbook.models.page import WIDTH, in_bytes, ranges, short, wrapped
from openbook.models.registry import read
from openbook.nn import spec
from openbook.nn.build import build
from openbook.nn.model import LanguageModel
from openbook.nn.state import PerSequence, PerSource, PerToken
from tests.families import ALL, DECODERS, Case, each
from tests.models.published import (
    BERT_BASE,
    GEMMA_2_2B,
    GEMMA_3_1B,
    LLAMA_2_7B,
    LLAMA_3_8B,
    MAMBA_130M,
    MISTRAL_7B,
    MIXTRAL_8X7B,
    PARAMETERS,
    STATE,
    T5_SMALL,
    gpt2,
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference folders of this test run."""
    return tmp_path_factory.mktemp("families")


def config_of(case: Case, root: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((case.folder(root) / "config.json").read_text())
    return config


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(("config", "total"), [row[1:] for row in PARAMETERS], ids=[row[0] for row in PARAMETERS])
def test_published_sizes_are_exact(config: dict[str, Any], total: int) -> None:
    told = describe(config)
    assert told.total == sum(told.parts.values()) == total
    assert told.as_json()["parameters"]["total"] == total
    assert f"{total:,}" in told.page()


def test_any_depth_is_instant() -> None:
    start = time.process_time()
    told = describe({**LLAMA_3_8B, "num_hidden_layers": 10_000})
    assert told.total == 8_030_261_248 + (10_000 - 32) * 218_112_000
    assert time.process_time() - start < 5


@each(ALL)
def test_counts_equal_those_of_the_built_model(case: Case, root: Path) -> None:
    told = describe(case.folder(root))
    with torch.device("meta"):
        model = build(told.model)
    assert told.total == sum(parameter.numel() for parameter in model.parameters())
    kept = {"token": 0, "sequence": 0, "source": 0}
    for one in model.states if told.model.causal else ():
        match one:
            case PerToken():
                kept["token"] += one.numbers
            case PerSequence():
                kept["sequence"] += sum(map(prod, one.shapes))
            case PerSource():
                kept["source"] += one.kv_heads * (one.key_dim + one.value_dim)
    assert kept == {"token": told.state.token, "sequence": told.state.sequence, "source": told.state.source}


def test_tied_weights_count_once() -> None:
    tied = describe(gpt2(768, 12, 12))
    own = describe({**gpt2(768, 12, 12), "tie_word_embeddings": False})
    assert own.total - tied.total == 50257 * 768
    assert "heads" not in tied.parts
    assert tied.work.products == own.work.products  # the product is the same


def test_active_parameters_of_experts() -> None:
    told = describe(MIXTRAL_8X7B)
    idle = 32 * 6 * 3 * 4096 * 14336
    assert told.active == told.total - idle == 12_879_925_248
    assert "12.9 B active" in told.page()
    assert describe(LLAMA_2_7B).active == describe(LLAMA_2_7B).total


# ------------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize(("config", "size"), [row[1:] for row in STATE], ids=[row[0] for row in STATE])
def test_published_state_of_a_token(config: dict[str, Any], size: int) -> None:
    told = describe(config)
    assert told.state.token * 2 == size
    assert told.as_json()["state"]["bytes_per_token"] == {"bf16": size, "fp32": 2 * size}
    assert in_bytes(size) in told.page()


def test_windows_bound_the_state() -> None:
    state = describe(MISTRAL_7B).state
    assert state.bytes(4096, 2) == state.bytes(32768, 2) == 4096 * 128 * 1024
    mixed = describe(GEMMA_2_2B).state
    layer = 4 * (256 + 256)
    assert mixed.bytes(8192, 2) == 13 * layer * 2 * (4096 + 8192)
    assert mixed.tokens == ((None, 13 * layer), (4096, 13 * layer))


def test_state_of_a_sequence_and_of_a_source() -> None:
    mamba = describe(MAMBA_130M)
    assert mamba.state.sequence == 24 * (1536 * 3 + 1536 * 16)
    assert mamba.state.bytes(10, 2) == mamba.state.bytes(10_000, 2) == mamba.state.sequence * 4
    t5 = describe(T5_SMALL, context=100)
    assert t5.state.source == t5.state.token == 6 * 2 * 512
    assert t5.serving["bf16"].state == 2 * 100 * 2 * 6 * 2 * 512
    bert = describe(BERT_BASE)
    assert bert.serving["fp32"].state == 0
    assert "State ─" not in bert.page()


# ------------------------------------------------------------------------------------------------ work


def test_work_of_a_plain_decoder() -> None:
    told = describe(gpt2(768, 12, 12), context=1024)
    assert told.work.products == 2 * (12 * 12 * 768 * 768 + 50257 * 768)
    assert told.work.attention_last == 4 * 12 * 768 * 1024
    assert told.work.attention_mean == 4 * 12 * 768 * 1025 / 2
    assert told.work.training == 3 * (told.work.products + told.work.attention_mean)


@pytest.mark.parametrize("chunk", [None, 3, 4, 20])
@pytest.mark.parametrize("window", [1, 3, 8, 20])
@pytest.mark.parametrize("causal", [True, False])
def test_what_a_token_sees_on_average(window: int, chunk: int | None, causal: bool) -> None:
    context = 8
    places = range(context)

    def sees(q: int, k: int) -> bool:
        return abs(q - k) < window and (k <= q or not causal) and q // (chunk or 99) == k // (chunk or 99)

    seen = [sum(sees(q, k) for k in places) for q in places]
    pattern = spec.Pattern(causal=causal, window=window, chunk=chunk)
    layer = spec.Attention(heads=2, kv_heads=1, head_dim=4, pattern=pattern)
    block = spec.Block(branches=(spec.Branch(layer=layer),))
    model = spec.Model(embed=spec.Embed(vocab=5, dim=4), stack=spec.Stack(dim=4, blocks=(block,) * 3), heads=())
    told = cost.work(cost.inventory(model), context)
    assert told.attention_mean == pytest.approx(3 * 4 * 8 * sum(seen) / context)
    if causal:
        assert told.attention_last == 3 * 4 * 8 * seen[-1]


def counted(model: LanguageModel, *inputs: Tensor, **named: Tensor) -> int:
    """Operations of a forward pass as torch counts them: products and convolutions, of attention what it knows."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.enable_grad():  # native steps for inference are not counted
        model(*inputs, **named)
    total: int = counter.get_total_flops()
    return total


def counted_otherwise(layer: spec.Layer, tokens: int) -> int:
    """Products for a token that torch counts and we do not, or the other way: of recurrences we count each step.

    A native scan it does not see at all; of one in blocks it sees the products of a chunk of `tokens`.
    """
    match layer:
        case spec.Selective():
            return -layer.inner * (1 + layer.state * 3)
        case spec.StateSpaceDual():
            inner = layer.heads * layer.head_dim
            inside = layer.groups * tokens * layer.state + inner * tokens
            return inside - inner
    return 0


EXPERTS = {"num_experts_per_tok", "num_experts", "ffn_config"}  # keys of what torch does not count
WITHOUT_EXPERTS = [case for case in ALL if not EXPERTS & set(case.values)]


@each(WITHOUT_EXPERTS)
def test_work_equals_what_torch_counts(case: Case, root: Path) -> None:
    tokens = 4
    told = describe(case.folder(root), context=tokens)
    ids = torch.ones(1, tokens, dtype=torch.int64)
    works = [told.work] + ([told.source_work] if told.source_work else [])
    named = {"source": ids} if told.source_work else {}
    named |= {"marks": ids.cumsum(1) == 1} if case.marked else {}
    products = tokens * sum(work.products for work in works)
    for block in told.model.stack.blocks:
        for branch in block.branches:
            products += tokens * 2 * counted_otherwise(branch.layer, tokens)
    scores = tokens * sum(work.attention_last for work in works)
    for layer in (branch.layer for block in told.model.stack.blocks for branch in block.branches):
        if isinstance(layer, spec.GlobalAttention):  # no blocks in short rows; a q of its own
            width = layer.heads * layer.head_dim
            scores += 4 * width * (tokens * tokens + tokens) + 2 * width * told.model.stack.dim
    assert products <= counted(make(told.model), ids, **named) <= products + scores


def test_experts_work_as_many_as_are_chosen() -> None:
    told = describe(MIXTRAL_8X7B)
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 8 * 4096 + 2 * 3 * 4096 * 14336
    assert told.work.products == 2 * (32 * layer + 32000 * 4096)


# ------------------------------------------------------------------------------------------------ memory


def test_memory_to_serve_and_to_train() -> None:
    told = describe(LLAMA_2_7B, context=4096, rows=2)
    assert told.serving["bf16"].weights == 2 * told.total
    assert told.serving["bf16"].state == 2 * 4096 * 512 * 1024
    assert told.serving["fp32"].total == 4 * told.total + 2 * 4096 * 1024 * 1024
    need = told.training
    assert (need.parameters, need.gradients, need.moments) == (4 * told.total, 4 * told.total, 8 * told.total)
    assert need.recomputed < need.activations


def saved_by_autograd(model: LanguageModel, ids: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.hidden(ids) if model.source is None else model.hidden(ids, encoded=model.encode_source(ids))
    assert out.requires_grad
    return sum(sizes.values())


SMALL = {"hidden_size": 128, "num_hidden_layers": 3, "vocab_size": 300}
HEADS = {**SMALL, "num_attention_heads": 4, "intermediate_size": 320}
ESTIMATED: list[dict[str, Any]] = [
    {"model_type": "llama", **HEADS, "num_key_value_heads": 2},
    {"model_type": "gpt2", "vocab_size": 300, "n_embd": 128, "n_layer": 3, "n_head": 4},
    {"model_type": "gemma2", **HEADS, "num_key_value_heads": 2, "head_dim": 32},
    {"model_type": "qwen3", **HEADS, "head_dim": 32},
    {"model_type": "mixtral", **HEADS, "num_local_experts": 4, "num_key_value_heads": 2},
    {"model_type": "bert", **HEADS},
    {"model_type": "t5", "vocab_size": 300, "d_model": 128, "d_ff": 320, "num_layers": 2, "num_heads": 4},
    {"model_type": "mamba", **SMALL},
]


@pytest.mark.parametrize("config", ESTIMATED, ids=lambda config: config["model_type"])
def test_estimate_of_activations_is_near_what_autograd_saves(config: dict[str, Any]) -> None:
    """Within a factor of two either way: it is called an estimate."""
    _, model = read(config)
    tokens, rows = 96, 2
    built = make(model).train()
    built.compute_dtype = torch.bfloat16
    measured = saved_by_autograd(built, torch.ones(rows, tokens, dtype=torch.int64))
    estimate = training(cost.inventory(model), tokens, rows).activations
    assert 0.5 * measured < estimate < 2 * measured


# ------------------------------------------------------------------------------------------------ the page


def test_a_folder_of_any_name_fits(tmp_path: Path) -> None:
    folder = DECODERS[0].folder(tmp_path)
    for size in range(1, 100):
        folder = folder.rename(tmp_path / ("x" * size))
        lines = describe(folder, context=17).page().splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert all(line == line.rstrip() for line in lines)


@each(ALL)
def test_page_fits_and_says_everything(case: Case, root: Path) -> None:
    told = describe(case.folder(root), context=17)
    lines = told.page().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert all(line == line.rstrip() for line in lines)
    text = "\n".join(lines)
    assert "1 file" in text
    for word in ("Structure", "Parameters", "Work for a", "Memory to serve", "Memory to train", f"{told.total:,}"):
        assert word in text
    json.dumps(told.as_json(), allow_nan=False)


def test_page_folds_equal_blocks() -> None:
    assert "blocks 0–11 × 12 " in describe(gpt2(768, 12, 12)).page()
    assert "blocks 0–11 × 12 " in describe({**gpt2(768, 12, 12), "scale_attn_by_inverse_layer_idx": True}).page()
    assert "blocks 0, 2 … 24 × 13 " in describe(GEMMA_2_2B).page()
    assert "blocks 0–4, 6–10, 12–16, 18–22, 24–25 × 22 " in describe(GEMMA_3_1B).page()
    single = describe({**gpt2(768, 1, 12)}).page()
    assert "  block 0 " in single
    assert "each" not in single.split("Parameters")[0]


def test_hundreds_of_different_blocks_still_fit() -> None:
    kinds = ["sliding_attention" if number * number % 7 in (1, 2) else "full_attention" for number in range(300)]
    told = describe({**GEMMA_2_2B, "num_hidden_layers": 300, "layer_types": kinds})
    assert max(map(len, told.page().splitlines())) <= WIDTH
    assert told.state.tokens[1][1] == 4 * 512 * kinds.count("sliding_attention")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([0], "0"), ([0, 1], "0–1"), ([0, 2], "0, 2"), ([1, 3, 5], "1, 3 … 5"), ([0, 1, 2, 4, 6, 7], "0–2, 4, 6–7")],
)
def test_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.00 K"), (9996, "10.0 K"), (999_600, "1.00 M"), (8.03e9, "8.03 B")],
)
def test_numbers_keep_three_digits(number: float, said: str) -> None:
    assert short(number) == said


def test_bytes_in_powers_of_1024() -> None:
    assert [in_bytes(n) for n in (0, 1023, 1024, 131072, 1024**3 - 1)] == [
        "0 B",
        "1,023 B",
        "1.00 KiB",
        "128 KiB",
        "1.00 GiB",
    ]


def test_lines_break_between_facts() -> None:
    assert wrapped("one two · three four · five", 14) == ["one two", "three four", "five"]
    assert wrapped("", 10) == []
    assert all(len(line) <= 10 for line in wrapped("averyveryverylongword · x", 10))


# ------------------------------------------------------------------------------------------------ where it comes from


def test_a_path_a_folder_or_the_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    for name in (tmp_path, str(tmp_path), tmp_path / "config.json", LLAMA_3_8B):
        told = describe(name)
        assert told.total == 8_030_261_248
        assert told.files == (0, 0)
        assert "no weights beside it" in told.page()


def test_a_head_that_the_files_lack_is_tied(tmp_path: Path) -> None:
    case = next(case for case in DECODERS if case.name == "llama-tied-mha")
    folder = case.folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert describe(folder).total == sum(p.numel() for p in case.reference().parameters())


def test_what_no_family_says(tmp_path: Path) -> None:
    norm = spec.Norm()
    attention = spec.Attention(heads=4, kv_heads=1, head_dim=6, rope=spec.Rope(dim=4), softcap=9.0)
    parallel = spec.Block(
        branches=(
            spec.Branch(layer=attention, place="plain"),
            spec.Branch(layer=spec.MLP(hidden=20), place="plain", norm=norm),
        ),
        parallel=True,
        norm=norm,
    )
    mixed = spec.Block(branches=(spec.Branch(layer=spec.Selective(inner=12, rank=2), norm=norm),))
    value = spec.Model(
        embed=spec.Embed(vocab=50, dim=16),
        stack=spec.Stack(dim=24, blocks=(parallel, mixed, parallel)),
        heads=(spec.Language(tied=False),),
    )
    model = make(value)
    with pytest.warns(match="No published family"):
        save(model, tmp_path)
    told = describe(tmp_path)
    assert told.total == sum(parameter.numel() for parameter in model.parameters())
    assert told.state.token == 2 * 2 * 6
    assert "parallel" in told.page()
    assert "rope on 4" in told.page()


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        describe(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is a file but no config"):
        describe(tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match="There is no folder"):
        describe(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1 to 1,024, its learned positions: got 2,000"):
        describe(gpt2(768, 12, 12), context=2000)
    with pytest.raises(InputError, match="at least 1"):
        describe(LLAMA_2_7B, context=0)
    with pytest.raises(InputError, match="`rows`"):
        describe(LLAMA_2_7B, rows=0)
