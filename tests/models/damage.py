"""Model folders to damage: a small real one for each test, and ways to change it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from openbook.models.load import save
from openbook.models.make import make
from openbook.models.registry import read

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 32,
}


GPT2 = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 12, "n_layer": 1, "n_head": 3, "n_positions": 16}
MIXTRAL = {**CONFIG, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 3}
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
}


def folder(root: Path, config: Mapping[str, Any] = CONFIG) -> Path:
    """A new folder with a model in it."""
    path = root / "model"
    save(make(read(config)[1], seed=1), path)
    return path


def weights(path: Path) -> Path:
    return path / "model.safetensors"


def change_config(path: Path, **changes: Any) -> None:
    """Set keys of the config.json; None takes a key away."""
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a folder."""
    tensors = {name: tensor.clone() for name, tensor in load_file(weights(path)).items()}
    change(tensors)
    save_file(tensors, weights(path))


def write_header(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file with this header, and perhaps another length of it than is true."""
    weights(path).write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def write_index(path: Path, files: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
