"""One page about a model: its structure with shapes, its parameters by part, operations, state and memory.

`describe` needs a config.json and nothing else; where weights lie beside it they are only looked at, not read.
Symbols: see nn/shapes.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openbook.errors import ConfigError, InputError
from openbook.models.cost import Inventory, Work, active, inventory, parameters, work
from openbook.models.folder import INDEX, WEIGHTS, Weights, read_config, resolve
from openbook.models.load import settled
from openbook.models.memory import BYTES, Serving, StateSize, Training, serving, state, training
from openbook.models.page import render
from openbook.models.registry import read
from openbook.nn import spec
from openbook.nn.plain import to_plain

USUAL = 8192  # tokens of a row where the model allows more, unless another number is asked for
UNBOUNDED = 2048  # where the model has no limit of its own


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything the page says, as values. Sizes of memory in bytes, of state in numbers, work in operations."""

    name: str
    family: str
    architecture: str
    model: spec.Model
    context: int  # tokens of the rows that work, state and memory are told for
    rows: int
    files: tuple[int, int]  # number and bytes of the weight files beside the config.json
    total: int
    active: int
    parts: Mapping[str, int]
    work: Work
    source_work: Work | None
    state: StateSize
    serving: Mapping[str, Serving]
    training: Training
    inventory: Inventory

    def page(self) -> str:
        """The description as text, at most 100 columns wide."""
        return render(self)

    def as_json(self) -> dict[str, Any]:
        """The description as plain values."""
        return {
            "name": self.name,
            "family": self.family,
            "architecture": self.architecture,
            "files": {"count": self.files[0], "bytes": self.files[1]},
            "context": self.model.context,
            "told_for": {"context": self.context, "rows": self.rows},
            "parameters": {"total": self.total, "active": self.active, "parts": dict(self.parts)},
            "flops_per_token": _work_json(self.work),
            "flops_per_source_token": None if self.source_work is None else _work_json(self.source_work),
            "state": {
                "numbers_per_token": self.state.token,
                "bytes_per_token": {name: self.state.token * width for name, width in BYTES.items()},
                "windows": [{"window": window, "numbers_per_token": size} for window, size in self.state.tokens],
                "bytes_per_sequence": self.state.sequence * BYTES["fp32"],
                "numbers_per_source_token": self.state.source,
            },
            "serving_bytes": {name: asdict(one) | {"total": one.total} for name, one in self.serving.items()},
            "training_bytes": asdict(self.training)
            | {"total": self.training.total, "total_recomputed": self.training.least},
            "structure": to_plain(self.model),
        }


def describe(name: str | Path | Mapping[str, Any], *, context: int | None = None, rows: int = 1) -> Description:
    """Describe a model folder, a config.json (a path or its content), or a repository by name.

    Work, state and memory are told for `rows` rows of `context` tokens (default: the model's own context, at most
    8,192; 2,048 where it has no limit). Raises ConfigError for a config.json that is not understood, CheckpointError
    where there is none, InputError for a context the model does not have.
    """
    folder, config, label = _find(name)
    family, model = read(config, "config.json" if folder is None else f"'{label}'")
    files = () if folder is None else tuple(sorted(folder.glob("*.safetensors")))
    if folder is not None and any((folder / one).is_file() for one in (WEIGHTS, INDEX)):
        model = settled(model, family, config, Weights(folder))
    length = _length(model, context)
    if rows < 1:
        raise InputError(f"`rows` must be at least 1: got {rows}.")
    found = inventory(model)
    parts = parameters(found)
    return Description(
        name="config.json" if folder is None else str(name),
        family=family.model_type,
        architecture=next((one for one in config.get("architectures") or family.heads), "Model"),
        model=model,
        context=length,
        rows=rows,
        files=(len(files), sum(file.stat().st_size for file in files)),
        total=sum(parts.values()),
        active=active(found),
        parts=parts,
        work=work(found, length),
        source_work=work(found, length, source=True) if found.source else None,
        state=state(found),
        serving={dtype: serving(found, length, rows, width) for dtype, width in BYTES.items()},
        training=training(found, length, rows),
        inventory=found,
    )


def _find(name: str | Path | Mapping[str, Any]) -> tuple[Path | None, Mapping[str, Any], str]:
    """The folder if there is one, the config, and what to call it in messages."""
    if isinstance(name, Mapping):
        return None, name, "config.json"
    path = Path(name)
    if os.path.isfile(path):
        if path.suffix != ".json":
            raise ConfigError(f"'{path}' is a file but no config.json; give a folder, a config.json or a name.")
        return path.parent, read_config(path), str(path)
    folder = resolve(name, weights=False)
    return folder, read_config(folder), str(folder / "config.json")


def _length(model: spec.Model, wanted: int | None) -> int:
    if wanted is None:
        return UNBOUNDED if model.context is None else min(model.context, USUAL)
    most = model.embed.room
    if wanted < 1 or (most is not None and wanted > most):
        limit = "at least 1" if most is None else f"1 to {most:,}, its learned positions"
        raise InputError(f"`context` must be {limit}: got {wanted:,}.")
    return wanted


def _work_json(one: Work) -> dict[str, float]:
    return {
        "products": one.products,
        "attention_last": one.attention_last,
        "attention_mean": one.attention_mean,
        "forward_last": one.last,
        "forward_mean": one.mean,
        "training": one.training,
    }
