"""How a model's makers would have it sampled: generation_config.json → the `Sampling` of who does not say.

Read are the fields that choose tokens, as vLLM takes them (its `--generation-config auto`). With `do_sample` false
the file says nothing of chances: its temperature and its kin are left aside.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from openbook.errors import CheckpointError, InputError
from openbook.files import read_json
from openbook.generate.sampling import Sampling

CHANCES = ("temperature", "top_p", "top_k", "min_p", "typical_p")
FIELDS = (*CHANCES, "repetition_penalty")


def defaults_of(folder: str | Path) -> Sampling:
    """What the folder's generation_config.json says; plain defaults where it says nothing. `CheckpointError` for a file
    that says what cannot be."""
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return Sampling()
    found = read_json(path)
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object: got {type(found).__name__}.")
    chosen: dict[str, Any] = {name: found[name] for name in FIELDS if found.get(name) is not None}
    if found.get("do_sample") is False:
        chosen = {name: value for name, value in chosen.items() if name not in CHANCES}
    try:
        return replace(Sampling(), **chosen)
    except InputError as error:
        raise CheckpointError(
            f"'{path}': {error} Mend it, or leave the file aside (--generation-config none)."
        ) from error
